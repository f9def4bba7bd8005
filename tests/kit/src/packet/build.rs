//! The packet builder. It owns the order of bytes on the wire, not whether a packet makes sense: wrong packets are wanted too.

use super::protocol;
use etherparse::{EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, Ipv4Options, TcpHeader, UdpHeader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A frame in the making. Start with [`Packet::between`] or [`Packet::ipv4`], end with [`Packet::build`].
///
/// Defaults: MACs `02:00:00:00:00:01` to `02:00:00:00:00:02`, TTL or hop limit 64, IPv4 id 0 without DF, no payload.
///
/// ```
/// use forwarder_kit::packet::{Packet, flag, verify_checksums};
/// let frame = Packet::between("10.0.1.10", "203.0.113.10").tcp(40000, 443, flag::SYN, 7).build();
/// assert_eq!(frame.len(), 14 + 20 + 20);
/// verify_checksums(&frame).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Packet {
    ethernet: Ethernet2Header,
    net: Net,
    transport: Transport,
    payload: Vec<u8>,
    trailing: usize,
}

#[derive(Clone, Debug)]
enum Net {
    V4(Ipv4Header),
    /// Extension headers as (protocol number, whole header with its first byte still open).
    V6(Ipv6Header, Vec<(u8, Vec<u8>)>),
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp(TcpHeader),
    Udp { source: u16, destination: u16, zero_checksum: bool },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw(u8),
}

impl Packet {
    /// An IPv4 packet; protocol 253 (for experiments) until a transport is chosen.
    pub fn ipv4(source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        let header = Ipv4Header {
            time_to_live: 64,
            dont_fragment: false,
            source: source.into().octets(),
            destination: destination.into().octets(),
            ..Ipv4Header::default()
        };
        Self::new(EtherType::IPV4, Net::V4(header))
    }

    /// An IPv6 packet; next header 253 (for experiments) until a transport is chosen.
    pub fn ipv6(source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        let header = Ipv6Header {
            hop_limit: 64,
            source: source.into().octets(),
            destination: destination.into().octets(),
            ..Ipv6Header::default()
        };
        Self::new(EtherType::IPV6, Net::V6(header, Vec::new()))
    }

    /// A packet between two addresses as text. Panics when they are no addresses or of two families: a mistake in the test.
    pub fn between(source: &str, destination: &str) -> Self {
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("`{text}` is not an IP address"));
        match (parse(source), parse(destination)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::ipv6(source, destination),
            _ => panic!("{source} and {destination} are of two families"),
        }
    }

    fn new(ether_type: EtherType, net: Net) -> Self {
        let ethernet = Ethernet2Header { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2], ether_type };
        Self { ethernet, net, transport: Transport::Raw(253), payload: Vec::new(), trailing: 0 }
    }

    /// Source and destination MAC address.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.ethernet.source = source;
        self.ethernet.destination = destination;
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.net {
            Net::V4(header) => header.time_to_live = ttl,
            Net::V6(header, _) => header.hop_limit = ttl,
        }
        self
    }

    /// DSCP and ECN as one byte (TOS or traffic class).
    pub fn traffic_class(mut self, byte: u8) -> Self {
        match &mut self.net {
            Net::V4(header) => {
                header.dscp = etherparse::IpDscp::try_new(byte >> 2).expect("six bits are left");
                header.ecn = etherparse::IpEcn::try_new(byte & 3).expect("two bits are left");
            }
            Net::V6(header, _) => header.traffic_class = byte,
        }
        self
    }

    /// IPv4 identification. Panics for IPv6.
    pub fn id(mut self, id: u16) -> Self {
        self.v4("id").identification = id;
        self
    }

    /// IPv4 "don't fragment". Panics for IPv6.
    pub fn df(mut self) -> Self {
        self.v4("df").dont_fragment = true;
        self
    }

    /// IPv4 options, a multiple of four bytes up to 40. Panics otherwise, and for IPv6.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.v4("options").options = Ipv4Options::try_from(options).expect("options of 0, 4, … 40 bytes");
        self
    }

    /// IPv6 flow label, 20 bits. Panics for IPv4.
    pub fn flow_label(mut self, label: u32) -> Self {
        match &mut self.net {
            Net::V6(header, _) => header.flow_label = Ipv6FlowLabel::try_new(label).expect("a flow label has 20 bits"),
            Net::V4(_) => panic!("IPv4 has no flow label"),
        }
        self
    }

    /// Adds an IPv6 extension header (hop-by-hop 0, routing 43, destination options 60, …); `body` follows its first two
    /// bytes and is padded with PadN to a multiple of eight. Panics for IPv4.
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        let Net::V6(_, extensions) = &mut self.net else { panic!("IPv4 has no extension headers") };
        let mut header = vec![0, 0];
        header.extend_from_slice(body);
        match (8 - header.len() % 8) % 8 {
            0 => {}
            1 => header.push(0),
            missing => {
                header.extend_from_slice(&[1, missing as u8 - 2]);
                header.resize(header.len() + missing - 2, 0);
            }
        }
        header[1] = u8::try_from(header.len() / 8 - 1).expect("an extension header has at most 2,048 bytes");
        extensions.push((number, header));
        self
    }

    /// Makes it a fragment by hand: id, offset in bytes (a multiple of 8), whether more follow. What comes after the IP
    /// header is the caller's, see [`Packet::protocol`]; to cut a whole packet use [`super::fragment`].
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        assert!(offset.is_multiple_of(8), "a fragment's offset is a multiple of 8");
        match &mut self.net {
            Net::V4(header) => {
                header.identification = id as u16;
                header.fragment_offset = IpFragOffset::try_new(offset / 8).expect("16 bits / 8 are 13 bits");
                header.more_fragments = more;
            }
            Net::V6(_, extensions) => {
                let mut header = vec![0, 0];
                header.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
                header.extend_from_slice(&id.to_be_bytes());
                extensions.push((protocol::FRAGMENT, header));
            }
        }
        self
    }

    /// A TCP segment with `flags` (see [`super::flag`]) and a sequence number; ACK number 1, window 64,240.
    pub fn tcp(mut self, source: u16, destination: u16, flags: u8, sequence: u32) -> Self {
        let mut header = TcpHeader::new(source, destination, sequence, 64_240);
        header.fin = flags & super::flag::FIN != 0;
        header.syn = flags & super::flag::SYN != 0;
        header.rst = flags & super::flag::RST != 0;
        header.psh = flags & super::flag::PSH != 0;
        header.ack = flags & super::flag::ACK != 0;
        header.urg = flags & super::flag::URG != 0;
        header.acknowledgment_number = u32::from(header.ack);
        self.transport = Transport::Tcp(header);
        self
    }

    /// Another acknowledgement number and window. Panics without [`Packet::tcp`] before it.
    pub fn acknowledges(mut self, number: u32, window: u16) -> Self {
        let Transport::Tcp(header) = &mut self.transport else { panic!("acknowledges() goes after tcp()") };
        (header.acknowledgment_number, header.window_size) = (number, window);
        self
    }

    /// TCP options, padded to a multiple of four. Panics without [`Packet::tcp`] before it.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        let Transport::Tcp(header) = &mut self.transport else { panic!("tcp_options() goes after tcp()") };
        header.set_options_raw(options).expect("at most 40 bytes of TCP options");
        self
    }

    /// A UDP datagram.
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination, zero_checksum: false };
        self
    }

    /// Sends the UDP datagram without a checksum. Panics without [`Packet::udp`] before it.
    pub fn without_checksum(mut self) -> Self {
        let Transport::Udp { zero_checksum, .. } = &mut self.transport else { panic!("only UDP may lack a checksum") };
        *zero_checksum = true;
        self
    }

    /// ICMP or ICMPv6 echo request.
    pub fn echo_request(self, id: u16, sequence: u16) -> Self {
        let kind = if self.is_v4() { 8 } else { 128 };
        self.icmp(kind, 0, (u32::from(id) << 16) | u32::from(sequence))
    }

    /// ICMP or ICMPv6 echo reply.
    pub fn echo_reply(self, id: u16, sequence: u16) -> Self {
        let kind = if self.is_v4() { 0 } else { 129 };
        self.icmp(kind, 0, (u32::from(id) << 16) | u32::from(sequence))
    }

    /// Any ICMP or ICMPv6 message: type, code, the four bytes after the checksum.
    pub fn icmp(mut self, kind: u8, code: u8, rest: u32) -> Self {
        self.transport = Transport::Icmp { kind, code, rest: rest.to_be_bytes() };
        self
    }

    /// Destination unreachable with this code, quoting `quoted` (an IP packet or its beginning, see [`super::quote`]).
    pub fn unreachable(self, code: u8, quoted: &[u8]) -> Self {
        let kind = if self.is_v4() { 3 } else { 1 };
        self.icmp(kind, code, 0).payload(quoted)
    }

    /// Time exceeded in transit, quoting `quoted`.
    pub fn time_exceeded(self, quoted: &[u8]) -> Self {
        let kind = if self.is_v4() { 11 } else { 3 };
        self.icmp(kind, 0, 0).payload(quoted)
    }

    /// Fragmentation needed (IPv4) or packet too big (IPv6) with this MTU, quoting `quoted`.
    pub fn too_big(self, mtu: u16, quoted: &[u8]) -> Self {
        let (kind, code) = if self.is_v4() { (3, 4) } else { (2, 0) };
        self.icmp(kind, code, u32::from(mtu)).payload(quoted)
    }

    /// Any other protocol; the payload is all there is after the IP header.
    pub fn protocol(mut self, number: u8) -> Self {
        self.transport = Transport::Raw(number);
        self
    }

    /// What follows the transport header.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// `length` bytes of a counting pattern as payload.
    pub fn payload_of(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|at| at as u8).collect();
        self
    }

    /// Bytes after the end of the IP packet, as Ethernet padding is.
    pub fn trailing(mut self, bytes: usize) -> Self {
        self.trailing = bytes;
        self
    }

    /// The frame. Lengths and checksums are filled in.
    pub fn build(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut frame = Vec::with_capacity(super::ETHERNET + 60 + segment.len() + self.trailing);
        frame.extend_from_slice(&self.ethernet.to_bytes());
        match &self.net {
            Net::V4(header) => {
                let mut header = header.clone();
                header.protocol = IpNumber(self.number());
                header.set_payload_len(segment.len()).expect("an IPv4 packet has at most 65,535 bytes");
                header.header_checksum = header.calc_header_checksum();
                frame.extend_from_slice(&header.to_bytes());
            }
            Net::V6(header, extensions) => {
                let mut header = header.clone();
                let length = segment.len() + extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
                header.payload_length = u16::try_from(length).expect("an IPv6 payload has at most 65,535 bytes");
                header.next_header = IpNumber(extensions.first().map_or(self.number(), |(number, _)| *number));
                frame.extend_from_slice(&header.to_bytes());
                for (at, (_, bytes)) in extensions.iter().enumerate() {
                    frame.push(extensions.get(at + 1).map_or(self.number(), |(number, _)| *number));
                    frame.extend_from_slice(&bytes[1..]);
                }
            }
        }
        frame.extend_from_slice(&segment);
        frame.resize(frame.len() + self.trailing, 0x55);
        frame
    }

    /// Transport header with checksum, and payload.
    fn segment(&self) -> Vec<u8> {
        let mut bytes = match &self.transport {
            Transport::Tcp(header) => self.tcp_bytes(header.clone()),
            Transport::Udp { source, destination, zero_checksum } => {
                self.udp_bytes(*source, *destination, *zero_checksum)
            }
            Transport::Icmp { kind, code, rest } => self.icmp_bytes(*kind, *code, *rest),
            Transport::Raw(_) => Vec::new(),
        };
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn tcp_bytes(&self, mut header: TcpHeader) -> Vec<u8> {
        header.checksum = match &self.net {
            Net::V4(ip) => header.calc_checksum_ipv4_raw(ip.source, ip.destination, &self.payload),
            Net::V6(ip, _) => header.calc_checksum_ipv6_raw(ip.source, ip.destination, &self.payload),
        }
        .expect("the length was bounded by the IP header");
        header.to_bytes().to_vec()
    }

    fn udp_bytes(&self, source_port: u16, destination_port: u16, zero_checksum: bool) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).expect("a UDP datagram has at most 65,535 bytes");
        let mut header = UdpHeader { source_port, destination_port, length, checksum: 0 };
        if !zero_checksum {
            header.checksum = match &self.net {
                Net::V4(ip) => header.calc_checksum_ipv4_raw(ip.source, ip.destination, &self.payload),
                Net::V6(ip, _) => header.calc_checksum_ipv6_raw(ip.source, ip.destination, &self.payload),
            }
            .expect("the length was bounded above");
        }
        header.to_bytes().to_vec()
    }

    fn icmp_bytes(&self, type_u8: u8, code_u8: u8, bytes5to8: [u8; 4]) -> Vec<u8> {
        match &self.net {
            Net::V4(_) => {
                let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
                Icmpv4Header::with_checksum(kind, &self.payload).to_bytes().to_vec()
            }
            Net::V6(ip, _) => {
                let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
                Icmpv6Header::with_checksum(kind, ip.source, ip.destination, &self.payload)
                    .expect("the length was bounded by the IP header")
                    .to_bytes()
                    .to_vec()
            }
        }
    }

    fn number(&self) -> u8 {
        match &self.transport {
            Transport::Tcp(_) => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            Transport::Icmp { .. } if self.is_v4() => protocol::ICMP,
            Transport::Icmp { .. } => protocol::ICMPV6,
            Transport::Raw(number) => *number,
        }
    }

    fn is_v4(&self) -> bool {
        matches!(self.net, Net::V4(_))
    }

    fn v4(&mut self, what: &str) -> &mut Ipv4Header {
        match &mut self.net {
            Net::V4(header) => header,
            Net::V6(..) => panic!("{what}() is for IPv4"),
        }
    }
}
