//! Ports that the host itself uses, which NAT on the host's own address must not take: the range that the kernel gives
//! to the host's outgoing connections, and every port that one of its sockets has.
//!
//! Read from /proc once a second at the most: a reading costs what walking the kernel's hash table of connections
//! costs, twice, whatever is in it: measured 8 ms with the 262,144 buckets of a 24 GB machine (524,288 is the most that
//! the kernel makes by itself), plus about 1 µs per socket. It blocks; asynchronous callers use a thread for it.

use super::{HostError, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

/// Per thread, because `/proc/net` is the namespace of the main thread.
const SOCKETS: [&str; 4] = [
    "/proc/thread-self/net/tcp",
    "/proc/thread-self/net/tcp6",
    "/proc/thread-self/net/udp",
    "/proc/thread-self/net/udp6",
];

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// A set of ports. TCP's and UDP's are one: a port that either has is nobody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl PortSet {
    /// The ports in use in the calling thread's network namespace: `net.ipv4.ip_local_port_range` and the local ports
    /// of all TCP and UDP sockets.
    ///
    /// # Errors
    /// When /proc cannot be read. A protocol that the kernel does not have has no ports.
    pub fn read() -> Result<Self> {
        let mut ports = Self::default();
        let (first, last) = local_port_range()?;
        (first..=last).for_each(|port| ports.insert(port));
        for path in SOCKETS.map(Path::new) {
            let file = match File::open(path) {
                Ok(file) => BufReader::new(file),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(HostError::file("read", path, error)),
            };
            ports.insert_sockets(file).map_err(|error| HostError::file("read", path, error))?;
        }
        Ok(ports)
    }

    /// Whether a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & 1 << (port % 64) != 0
    }

    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// The set as the datapath has it: port p is bit p % 64 of word p / 64.
    pub fn words(&self) -> &[u64; 1024] {
        &self.0
    }

    /// Adds the local ports in a listing as /proc/net/tcp. Lines of another form, as the heading is, are nobody's.
    fn insert_sockets(&mut self, mut listing: impl BufRead) -> std::io::Result<()> {
        let mut line = Vec::with_capacity(256);
        while listing.read_until(b'\n', &mut line)? > 0 {
            if let Some(port) = parse_local_port(&line) {
                self.insert(port);
            }
            line.clear();
        }
        Ok(())
    }
}

/// The first and the last port that the kernel gives to outgoing connections (`net.ipv4.ip_local_port_range`).
///
/// # Errors
/// When it cannot be read or understood.
pub fn local_port_range() -> Result<(u16, u16)> {
    let path = Path::new(RANGE);
    let text = std::fs::read_to_string(path).map_err(|error| HostError::file("read", path, error))?;
    parse_range(&text).ok_or_else(|| HostError::Unexpected { path: path.to_owned(), text: text.trim().to_owned() })
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let range = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (numbers.next().is_none() && range.0 <= range.1).then_some(range)
}

/// The port from `  46: 010310AC:9C4C 030310AC:1770 01 …` (proc_net_tcp.rst of the kernel). 0 is a socket without one.
fn parse_local_port(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, port) = line.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Netns;
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Instant;

    fn all(ports: &PortSet) -> Vec<u16> {
        (0..=u16::MAX).filter(|port| ports.contains(*port)).collect()
    }

    #[test]
    fn listings() {
        let listing = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
            0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1\n   \
            1: 00000000000000000000000001000000:FFFF 00000000000000000000000000000000:0000 07 0:0\n\
            rubbish\n: : :\n 2: 0100007F:XYZ 0\n 3: 0100007F:12345 0\n 4: 0100007F:0000 0\n 5: nothing\n\n 6: a:0001";
        let mut ports = PortSet::default();
        ports.insert_sockets(listing.as_bytes()).unwrap();
        assert_eq!(all(&ports), [1, 22, 65535]);
        assert_eq!((ports.words()[0], ports.words()[1023]), (1 << 1 | 1 << 22, 1 << 63));
        ports.insert_sockets([0xff, b'\n', 0, b'\n'].as_slice()).unwrap();
        assert_eq!(all(&ports), [1, 22, 65535]);
    }

    #[test]
    fn ranges() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32768, 60999)));
        for text in ["", "1", "2 1", "1 65536", "1 2 3", "a b"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    #[test]
    fn sockets_of_this_namespace_only() {
        let (netns, other) = (Netns::new(), Netns::new());
        let before = netns.enter(|| PortSet::read().unwrap());
        assert_eq!(all(&before), (32768..=60999).collect::<Vec<_>>());
        let _sockets = netns.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:22").unwrap();
            let client = TcpStream::connect("127.0.0.1:22").unwrap();
            (listener, client, TcpListener::bind("[::1]:8080").unwrap(), UdpSocket::bind("[::]:53").unwrap())
        });
        let (ports, took) = netns.enter(|| {
            let begun = Instant::now();
            (PortSet::read().unwrap(), begun.elapsed())
        });
        println!("one reading took {took:?}");
        assert_eq!(all(&ports)[..3], [22, 53, 8080]);
        assert_eq!(all(&ports).len(), all(&before).len() + 3);
        assert_eq!(other.enter(|| PortSet::read().unwrap()), before);
    }
}
