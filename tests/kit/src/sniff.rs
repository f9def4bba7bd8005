//! Frames as they are on an interface: captured and put there, over AF_PACKET. No libpcap.
//!
//! A socket here sees what the kernel sees: frames that an XDP program redirects or drops on this interface do not show;
//! look at the peer's end instead.

use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{self, LinkAddr, MsgFlags};
use socket2::{Domain, Protocol, Socket, Type};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// `ETH_P_ALL` in network order, as the socket call wants it.
const ALL_PROTOCOLS: i32 = (nix::libc::ETH_P_ALL as u16).to_be() as i32;

/// An open tap on one interface.
#[derive(Debug)]
pub struct Sniffer {
    socket: Socket,
    link: LinkAddr,
}

/// One captured frame.
#[derive(Clone, Debug)]
pub struct Captured {
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
    /// Sent by this host, not received.
    pub outgoing: bool,
}

impl Sniffer {
    /// Opens a tap; frames from now on are kept by the kernel (up to 8 MiB) until they are read.
    ///
    /// # Errors
    /// When there is no such interface in the namespace, or without root.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        netns.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_PROTOCOLS)))
                .context("cannot open a packet socket")?;
            // The limit of the machine may be lower; then it is what it is.
            let _ = socket.set_recv_buffer_size(8 << 20);
            let link = link_address(interface)?;
            Ok(Self { socket, link })
        })
    }

    /// The next frame on the interface, or `None` when there is none within `limit`.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn next(&self, limit: Duration) -> Result<Option<Captured>> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_micros(10))))?;
            let (length, from) = match socket::recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error).context("cannot read from the packet socket"),
            };
            let Some(from) = from.filter(|from| from.ifindex() == self.link.ifindex()) else { continue };
            let outgoing = from.as_ref().sll_pkttype == nix::libc::PACKET_OUTGOING;
            return Ok(Some(Captured { frame: buffer[..length].to_vec(), outgoing }));
        }
    }

    /// The next received (not sent) frame that `wanted` accepts.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn expect(&self, what: &str, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        while let Some(captured) = self.next(end.saturating_duration_since(Instant::now()))? {
            if captured.outgoing {
                continue;
            }
            if wanted(&captured.frame) {
                return Ok(captured.frame);
            }
            seen.push(crate::packet::describe(&captured.frame));
        }
        bail!("no {what} within {} ms; seen: {seen:?}", limit.as_millis())
    }

    /// Everything received (not sent) that is there by now and within `limit` after.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn all(&self, limit: Duration) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + limit;
        let mut frames = Vec::new();
        while let Some(captured) = self.next(end.saturating_duration_since(Instant::now()))? {
            if !captured.outgoing {
                frames.push(captured.frame);
            }
        }
        Ok(frames)
    }

    /// Sends a frame out of the interface as it is.
    ///
    /// # Errors
    /// When the interface is down, or the frame larger than its MTU allows.
    pub fn inject(&self, frame: &[u8]) -> Result<()> {
        let sent = socket::sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty());
        sent.with_context(|| format!("cannot send {}", crate::packet::describe(frame)))?;
        Ok(())
    }
}

fn link_address(interface: &str) -> Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()
        .context("cannot list the interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {interface} in this namespace"))
}

/// The MAC address of an interface.
///
/// # Errors
/// When there is no such interface.
pub fn mac(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
    netns.enter(|| link_address(interface)?.addr().with_context(|| format!("{interface} has no MAC address")))
}

#[cfg(test)]
mod tests {
    use super::{Sniffer, mac};
    use crate::packet::Packet;
    use crate::{Netns, topology};
    use std::time::Duration;

    #[test]
    fn what_is_injected_here_is_captured_there() {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        topology::link((&a, "eth0"), (&b, "eth0"), 1500, 1).unwrap();
        let (here, there) = (Sniffer::open(&a, "eth0").unwrap(), Sniffer::open(&b, "eth0").unwrap());
        let packet = Packet::between("10.9.0.1", "10.9.0.2").macs(mac(&a, "eth0").unwrap(), mac(&b, "eth0").unwrap());
        let frame = packet.udp(1, 2).payload(b"over the wire").trailing(3).build();
        here.inject(&frame).unwrap();
        let got = there.expect("the frame", Duration::from_secs(2), |other| other == frame).unwrap();
        assert_eq!(got, frame);
    }
}
