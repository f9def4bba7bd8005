//! The destination `ipfix`: windows as IPFIX data records over UDP (RFC 7011), with the addresses and ports of both sides of
//! the translation, and an event for every translated connection that begins or ends (RFC 8158 §4.3).
//!
//! One data record per window and direction, not one per interface: it names both interfaces. Templates are sent first and
//! again every minute, because UDP forgets (RFC 7011 §8.4). What UDP loses the collector sees from the sequence numbers.

use super::destination::Sink;
use super::text::wanted;
use crate::record::{Batch, Filter, Interfaces, NOWHERE, Record, Window};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Largest message: fits the smallest MTU that tunnels leave, and no router has to fragment it (RFC 7011 §10.3.3).
const LARGEST: usize = 1280 - 40 - 8;
/// How often templates are sent again.
const TEMPLATES_EVERY: Duration = Duration::from_secs(60);
/// Message header: version, length, export time, sequence number, observation domain (RFC 7011 §3.1).
const HEADER: usize = 16;
/// Set header: id and length (RFC 7011 §3.3.2).
const SET_HEADER: usize = 4;

const IPV4_FLOW: u16 = 256;
const IPV6_FLOW: u16 = 257;
const NAT_EVENT: u16 = 258;

/// NAT44 session create and delete (RFC 8158 §4.3, natEvent).
const SESSION_CREATE: u8 = 4;
const SESSION_DELETE: u8 = 5;

/// Information elements (IANA, "IP Flow Information Export (IPFIX) Entities") and their lengths, bytes.
const COMMON: [(u16, u16); 14] = [
    (152, 8), // flowStartMilliseconds
    (153, 8), // flowEndMilliseconds
    (2, 8),   // packetDeltaCount
    (1, 8),   // octetDeltaCount
    (10, 4),  // ingressInterface
    (14, 4),  // egressInterface
    (4, 1),   // protocolIdentifier
    (233, 1), // firewallEvent
    (136, 1), // flowEndReason
    (6, 2),   // tcpControlBits
    (7, 2),   // sourceTransportPort
    (11, 2),  // destinationTransportPort
    (227, 2), // postNAPTSourceTransportPort
    (228, 2), // postNAPTDestinationTransportPort
];
const ADDRESSES4: [(u16, u16); 4] = [
    (8, 4),   // sourceIPv4Address
    (12, 4),  // destinationIPv4Address
    (225, 4), // postNATSourceIPv4Address
    (226, 4), // postNATDestinationIPv4Address
];
const ADDRESSES6: [(u16, u16); 2] = [
    (27, 16), // sourceIPv6Address
    (28, 16), // destinationIPv6Address
];
const EVENT: [(u16, u16); 7] = [
    (323, 8), // observationTimeMilliseconds
    (230, 1), // natEvent
    (4, 1),   // protocolIdentifier
    (7, 2),   // sourceTransportPort
    (11, 2),  // destinationTransportPort
    (227, 2), // postNAPTSourceTransportPort
    (228, 2), // postNAPTDestinationTransportPort
];

/// The collector, and the message being filled.
#[derive(Debug)]
pub struct Ipfix {
    socket: UdpSocket,
    message: Vec<u8>,
    /// Set that is open in the message, and where it begins.
    set: Option<(u16, usize)>,
    /// Data records in the message.
    records: u32,
    /// Data records before it, modulo 2^32.
    sequence: u32,
    templates_at: Option<Instant>,
}

impl Ipfix {
    /// To this collector.
    ///
    /// # Errors
    /// When there is no socket towards it.
    pub fn open(collector: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if collector.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(collector)?;
        Ok(Self { socket, message: Vec::new(), set: None, records: 0, sequence: 0, templates_at: None })
    }

    fn begin_message(&mut self) {
        self.message.clear();
        self.message.resize(HEADER, 0);
        (self.set, self.records) = (None, 0);
        if self.templates_at.is_none_or(|at| at.elapsed() >= TEMPLATES_EVERY) {
            self.templates_at = Some(Instant::now());
            let begin = self.message.len();
            self.message.extend_from_slice(&[0; SET_HEADER]);
            self.template(IPV4_FLOW, &[&COMMON, &ADDRESSES4]);
            self.template(IPV6_FLOW, &[&COMMON, &ADDRESSES6]);
            self.template(NAT_EVENT, &[&EVENT, &ADDRESSES4]);
            self.end_set(2, begin);
        }
    }

    fn template(&mut self, id: u16, elements: &[&[(u16, u16)]]) {
        let count: usize = elements.iter().map(|part| part.len()).sum();
        self.put(&id.to_be_bytes());
        self.put(&(count as u16).to_be_bytes());
        for (element, length) in elements.iter().copied().flatten() {
            self.put(&element.to_be_bytes());
            self.put(&length.to_be_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.message.extend_from_slice(bytes);
    }

    fn end_set(&mut self, id: u16, begin: usize) {
        let length = (self.message.len() - begin) as u16;
        self.message[begin..begin + 2].copy_from_slice(&id.to_be_bytes());
        self.message[begin + 2..begin + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Makes room for a record of `length` bytes in a set with this id; sends the message when it is full.
    fn room(&mut self, id: u16, length: usize) -> io::Result<()> {
        if self.message.is_empty() {
            self.begin_message();
        }
        if self.message.len() + SET_HEADER + length > LARGEST {
            self.send()?;
            self.begin_message();
        }
        if self.set.is_none_or(|(open, _)| open != id) {
            if let Some((open, begin)) = self.set.take() {
                self.end_set(open, begin);
            }
            self.set = Some((id, self.message.len()));
            self.message.extend_from_slice(&[0; SET_HEADER]);
        }
        self.records += 1;
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.message.is_empty() {
            return Ok(());
        }
        if let Some((open, begin)) = self.set.take() {
            self.end_set(open, begin);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as u32;
        let length = self.message.len() as u16;
        self.message[0..2].copy_from_slice(&10_u16.to_be_bytes());
        self.message[2..4].copy_from_slice(&length.to_be_bytes());
        self.message[4..8].copy_from_slice(&now.to_be_bytes());
        self.message[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(self.records);
        let sent = self.socket.send(&self.message);
        self.message.clear();
        if sent.is_err() {
            // Perhaps nobody was there to read them.
            self.templates_at = None;
        }
        sent.map(drop)
    }

    fn flow(&mut self, window: &Window, names: &Interfaces) -> io::Result<()> {
        let (before, after) = (&window.arrived, &window.left);
        let is_v4 = before.source.is_ipv4();
        let length =
            |parts: [&[(u16, u16)]; 2]| parts.iter().copied().flatten().map(|(_, length)| usize::from(*length)).sum();
        if is_v4 {
            self.room(IPV4_FLOW, length([&COMMON, &ADDRESSES4]))?;
        } else {
            self.room(IPV6_FLOW, length([&COMMON, &ADDRESSES6]))?;
        }
        let index = |number: u16| names.at(number).map_or(0, |interface| interface.ifindex);
        let egress = if window.egress == NOWHERE { 0 } else { index(window.egress) };
        self.put(&(window.first_ms as u64).to_be_bytes());
        self.put(&(window.last_ms as u64).to_be_bytes());
        self.put(&window.packets.to_be_bytes());
        self.put(&window.bytes.to_be_bytes());
        self.put(&index(window.ingress).to_be_bytes());
        self.put(&egress.to_be_bytes());
        // firewallEvent: created 1, deleted 2, denied 3, update 5. flowEndReason: active timeout 2, end detected 3.
        let event = match window {
            Window { refused: Some(_), .. } => 3,
            Window { ends: true, .. } => 2,
            Window { begins: true, .. } => 1,
            _ => 5,
        };
        self.put(&[window.protocol, event, if window.ends { 3 } else { 2 }]);
        for number in [
            u16::from(window.tcp_flags),
            before.source_port,
            before.destination_port,
            after.source_port,
            after.destination_port,
        ] {
            self.put(&number.to_be_bytes());
        }
        self.put_address(before.source);
        self.put_address(before.destination);
        if is_v4 {
            self.put_address(after.source);
            self.put_address(after.destination);
        }
        Ok(())
    }

    fn event(&mut self, window: &Window, event: u8, at_ms: i64) -> io::Result<()> {
        let elements = EVENT.iter().chain(&ADDRESSES4);
        self.room(NAT_EVENT, elements.map(|(_, length)| usize::from(*length)).sum())?;
        let (before, after) = (&window.arrived, &window.left);
        self.put(&(at_ms as u64).to_be_bytes());
        self.put(&[event, window.protocol]);
        for port in [before.source_port, before.destination_port, after.source_port, after.destination_port] {
            self.put(&port.to_be_bytes());
        }
        for address in [before.source, before.destination, after.source, after.destination] {
            self.put_address(address);
        }
        Ok(())
    }

    fn put_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
    }

    fn window(&mut self, window: &Window, names: &Interfaces) -> io::Result<u64> {
        let translated = window.originator && window.is_translated() && window.arrived.source.is_ipv4();
        let mut records = 1;
        if translated && window.begins {
            let begun = if window.begun_ms == 0 { window.first_ms } else { window.begun_ms };
            self.event(window, SESSION_CREATE, begun)?;
            records += 1;
        }
        self.flow(window, names)?;
        if translated && window.ends {
            self.event(window, SESSION_DELETE, window.last_ms)?;
            records += 1;
        }
        Ok(records)
    }
}

impl Sink for Ipfix {
    fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64> {
        let mut records = 0;
        for window in batch.windows.iter().filter(|window| wanted(filter, window, &batch.interfaces)) {
            records += self.window(window, &batch.interfaces)?;
        }
        self.send()?;
        Ok(records)
    }

    /// IPFIX has no records without packets. What is lost shows in the sequence numbers (RFC 7011 §3.1), as a gap.
    fn status(&mut self, record: &Record<'_>, _: u16, _: &Interfaces) -> io::Result<()> {
        if matches!(record, Record::SkipData(_)) {
            self.send()?;
            self.sequence = self.sequence.wrapping_add(1);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }

    fn poll(&mut self, _: bool) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Interface, Span, Tuple};
    use std::sync::Arc;

    #[test]
    fn messages_are_of_the_lengths_that_they_say() {
        let collector = UdpSocket::bind("127.0.0.1:0").expect("a port");
        collector.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        let mut ipfix = Ipfix::open(collector.local_addr().expect("bound")).expect("a socket");
        let tuple = |source: &str| Tuple {
            source: source.parse().expect("an address"),
            destination: source.parse().expect("an address"),
            source_port: 1,
            destination_port: 2,
        };
        let window = Window {
            arrived: tuple("10.0.0.1"),
            left: tuple("198.51.100.1"),
            originator: true,
            begins: true,
            ends: true,
            ..Window::default()
        };
        let other = Window { arrived: tuple("2001:db8::1"), left: tuple("2001:db8::1"), ..Window::default() };
        let windows: Vec<_> = [window, other].into_iter().cycle().take(100).collect();
        let interfaces = Arc::new(Interfaces { list: vec![Interface::default()], rules: Arc::default() });
        let batch = Batch { interfaces, windows };
        let records = ipfix.take(&batch, &Filter::All).expect("it is there");
        assert_eq!(records, 50 * 3 + 50);
        let (mut data, mut sequence, mut templates) = (0, 0, 0);
        while data < records as u32 {
            let mut message = [0; 2000];
            let length = collector.recv(&mut message).expect("all messages come");
            let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().expect("four"));
            assert_eq!((number(0) >> 16, number(0) as u16 as usize), (10, length));
            assert!(length <= LARGEST);
            assert_eq!(number(8), sequence);
            let mut at = HEADER;
            while at < length {
                let (id, set) = ((number(at) >> 16) as u16, number(at) as u16 as usize);
                let size = match id {
                    IPV4_FLOW => 69,
                    IPV6_FLOW => 85,
                    NAT_EVENT => 34,
                    _ => {
                        templates += 1;
                        usize::MAX
                    }
                };
                let count = (set - SET_HEADER) / size;
                assert!(size == usize::MAX || count * size == set - SET_HEADER, "set {id} of {set} bytes");
                data += count as u32;
                at += set;
            }
            assert_eq!(at, length);
            sequence = data;
        }
        assert_eq!(templates, 1);
        // What is lost is a gap.
        ipfix.status(&Record::NoData(Span::default()), 1, &batch.interfaces).expect("it is there");
        ipfix.status(&Record::SkipData(Span::default()), 1, &batch.interfaces).expect("it is there");
        ipfix.take(&batch, &Filter::All).expect("it is there");
        let mut message = [0; 2000];
        collector.recv(&mut message).expect("it comes");
        assert_eq!(message[8..12], (sequence + 1).to_be_bytes());
    }
}
