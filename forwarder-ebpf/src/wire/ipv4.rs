//! IPv4 (RFC 791) with the transport fields that flow keys need, and the rewriting of both.

use super::checksum::{Delta, apply, apply_udp};
use super::{ETHERNET, Fragment, Transport, icmp, protocol, put, take, tcp_flags};
use crate::abi::{FlowEntry, FlowKey4, status};
use crate::frame::Frame;

/// Bytes of a header without options.
pub const HEADER: usize = 20;
/// Offset of TTL in the frame.
const TTL: usize = ETHERNET + 8;
/// Offset of the header checksum in the frame.
const CHECKSUM: usize = ETHERNET + 10;
/// Bit of the flags word: don't fragment.
const DONT_FRAGMENT: u16 = 0x4000;
/// Bit of the flags word: more fragments.
const MORE_FRAGMENTS: u16 = 0x2000;
/// Bits of the flags word that hold the offset, in units of eight bytes.
const OFFSET: u16 = 0x1fff;

/// An IPv4 packet, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Packet4 {
    /// Its flow key.
    pub key: FlowKey4,
    /// Total length, bytes.
    pub total: u16,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// May not be fragmented.
    pub dont_fragment: bool,
    /// Identification.
    pub id: [u8; 2],
    /// Place in its datagram.
    pub fragment: Fragment,
    /// What follows the header.
    pub transport: Transport,
    /// TCP flags that state looks at, or `status::SIGNAL`.
    pub signal: u8,
    /// TCP sequence number; 0 for all other protocols.
    pub sequence: u32,
    /// Offset of the transport header; in a byte, so that the verifier knows a bound when it is read back from memory.
    pub(crate) l4: u8,
}

/// The packet, if it is of the plain kind that the fast path takes: no options, no fragment, TCP or UDP, all of it
/// in the frame. Everything else is for `parse`.
#[inline(always)]
pub fn parse_plain<F: Frame>(frame: &mut F, side: u8) -> Option<Packet4> {
    let length = frame.length();
    let header = frame.at::<{ ETHERNET + HEADER + 8 }>(0)?;
    let total = u16::from_be_bytes(take(header, 16)?);
    let flags = u16::from_be_bytes(take(header, 20)?);
    if header[14] != 0x45 || flags & (MORE_FRAGMENTS | OFFSET) != 0 || ETHERNET + total as usize > length {
        return None;
    }
    let protocol = header[23];
    let (addresses, ports) = (u64::from_ne_bytes(take(header, 26)?), u32::from_ne_bytes(take(header, 34)?));
    let (ttl, tos, id) = (header[22], header[15], take(header, 18)?);
    let (transport, signal, sequence) = match protocol {
        protocol::UDP if total as usize >= HEADER + 8 => (Transport::Udp, status::SIGNAL, 0),
        protocol::TCP if total as usize >= HEADER + 20 => {
            let header = frame.at::<{ ETHERNET + HEADER + 20 }>(0)?;
            (Transport::Tcp, header[47] & tcp_flags::TRACKED, u32::from_be_bytes(take(header, 38)?))
        }
        _ => return None,
    };
    Some(Packet4 {
        // Last, and never looked into: its two words shall stay whole.
        key: FlowKey4::pack(addresses, ports, protocol, side),
        total,
        ttl,
        tos,
        dont_fragment: flags & DONT_FRAGMENT != 0,
        id,
        fragment: Fragment::Whole,
        transport,
        signal,
        sequence,
        l4: (ETHERNET + HEADER) as u8,
    })
}

/// The packet, whatever it is; `None` when its headers contradict each other or do not fit.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F, side: u8) -> Option<Packet4> {
    let length = frame.length();
    let header = frame.at::<{ ETHERNET + HEADER }>(0)?;
    let header_bytes = usize::from(header[14] & 15) * 4;
    let total = u16::from_be_bytes(take(header, 16)?);
    let flags = u16::from_be_bytes(take(header, 20)?);
    if header[14] >> 4 != 4
        || header_bytes < HEADER
        || (total as usize) < header_bytes
        || ETHERNET + total as usize > length
    {
        return None;
    }
    let fragment = match (flags & OFFSET, flags & MORE_FRAGMENTS) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let mut packet = Packet4 {
        key: FlowKey4 {
            source: take(header, 26)?,
            destination: take(header, 30)?,
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: header[23],
            side,
            zero: [0; 2],
        },
        total,
        ttl: header[22],
        tos: header[15],
        dont_fragment: flags & DONT_FRAGMENT != 0,
        id: take(header, 18)?,
        fragment,
        transport: Transport::Opaque,
        signal: status::SIGNAL,
        sequence: 0,
        l4: (ETHERNET + header_bytes) as u8,
    };
    if fragment == Fragment::Later {
        packet.signal = 0;
    } else {
        parse_transport(frame, &mut packet, total as usize - header_bytes)?;
    }
    Some(packet)
}

/// Fills in ports, signal and kind from the transport header. `available` is what the IP length leaves for it.
#[inline(always)]
fn parse_transport<F: Frame>(frame: &mut F, packet: &mut Packet4, available: usize) -> Option<()> {
    match packet.key.protocol {
        protocol::TCP => {
            if available < 20 {
                return None;
            }
            let tcp = frame.at::<20>(packet.l4())?;
            packet.key.source_port = take(tcp, 0)?;
            packet.key.destination_port = take(tcp, 2)?;
            packet.signal = tcp[13] & tcp_flags::TRACKED;
            packet.sequence = u32::from_be_bytes(take(tcp, 4)?);
            packet.transport = Transport::Tcp;
        }
        protocol::UDP => {
            if available < 8 {
                return None;
            }
            let udp = frame.at::<8>(packet.l4())?;
            packet.key.source_port = take(udp, 0)?;
            packet.key.destination_port = take(udp, 2)?;
            packet.transport = Transport::Udp;
        }
        protocol::ICMP => {
            if available < icmp::HEADER {
                return None;
            }
            let message = frame.at::<{ icmp::HEADER }>(packet.l4())?;
            let identifier = [message[4], message[5]];
            packet.transport = match message[0] {
                icmp::v4::ECHO => Transport::Echo,
                icmp::v4::ECHO_REPLY => Transport::EchoReply,
                icmp::v4::UNREACHABLE | icmp::v4::TIME_EXCEEDED | icmp::v4::PARAMETER_PROBLEM => Transport::Error,
                _ => Transport::Control,
            };
            match message[0] {
                icmp::v4::ECHO => packet.key.source_port = identifier,
                icmp::v4::ECHO_REPLY => packet.key.destination_port = identifier,
                _ => {}
            }
        }
        protocol::UDPLITE | protocol::DCCP if available >= 8 => packet.transport = Transport::Pseudo,
        _ => {}
    }
    Some(())
}

impl Packet4 {
    /// Offset of the transport header in the frame, at most 74.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }

    /// The destination is a group, or "this network" or everyone on it.
    #[inline(always)]
    pub fn to_group(&self) -> bool {
        let [first, ..] = self.key.destination;
        first >= 224 || first == 0
    }

    /// An address that no packet on the wire has (RFC 1122 §3.2.1.3).
    #[inline(always)]
    pub fn is_martian(&self) -> bool {
        let [first, ..] = self.key.source;
        let [to, ..] = self.key.destination;
        first >= 224 || first == 0 || first == 127 || to == 127
    }

    /// Writes addresses, ports, TTL and checksums as the entry says. False when the frame does not have the bytes.
    #[inline(always)]
    pub fn write<F: Frame>(&self, frame: &mut F, entry: &FlowEntry) -> bool {
        self.try_write(frame, entry).is_some()
    }

    #[inline(always)]
    fn try_write<F: Frame>(&self, frame: &mut F, entry: &FlowEntry) -> Option<()> {
        let [addresses, ports]: [u64; 2] = zerocopy::transmute!(self.key);
        let (new_addresses, new_ports) = (entry.addresses.load(), entry.ports.load());
        let change = Delta::default().words(addresses, new_addresses);
        let header = frame.at::<{ ETHERNET + HEADER }>(0)?;
        header[TTL] = header[TTL].wrapping_sub(1);
        let sum = apply(take(header, CHECKSUM)?, change.ttl_step().finish());
        put(header, CHECKSUM, sum)?;
        put(header, 26, new_addresses.to_ne_bytes())?;
        match self.transport {
            Transport::Tcp => {
                let tcp = frame.at::<18>(self.l4())?;
                put(tcp, 0, new_ports.to_ne_bytes())?;
                let sum = apply(take(tcp, 16)?, change.words(ports & 0xffff_ffff, new_ports.into()).finish());
                put(tcp, 16, sum)?;
            }
            Transport::Udp => {
                let udp = frame.at::<8>(self.l4())?;
                put(udp, 0, new_ports.to_ne_bytes())?;
                let sum = apply_udp(take(udp, 6)?, change.words(ports & 0xffff_ffff, new_ports.into()).finish());
                put(udp, 6, sum)?;
            }
            Transport::Echo | Transport::EchoReply => {
                let echo = frame.at::<8>(self.l4())?;
                let identifier = if echo[0] == icmp::v4::ECHO { entry.source_port() } else { entry.destination_port() };
                // From what is there: with identifier 0, request and reply of two pings may share one entry.
                let change = Delta::default().word([echo[4], echo[5]], identifier).finish();
                [echo[2], echo[3]] = apply([echo[2], echo[3]], change);
                [echo[4], echo[5]] = identifier;
            }
            Transport::Pseudo => {
                let header = frame.at::<8>(self.l4())?;
                [header[6], header[7]] = apply_udp([header[6], header[7]], change.finish());
            }
            Transport::Error | Transport::Control | Transport::Opaque => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Buffer;

    /// A DNS query for example.com: Ethernet, IPv4 with DF, UDP, 29 bytes of query.
    const DNS: [u8; 71] = [
        0x00, 0x1b, 0x17, 0x00, 0x01, 0x30, 0x3c, 0x22, 0xfb, 0x11, 0x22, 0x33, 0x08, 0x00, // Ethernet
        0x45, 0x00, 0x00, 0x39, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x11, 0x4c, 0xac, // IPv4
        0xc0, 0xa8, 0x01, 0x0a, 0x08, 0x08, 0x08, 0x08, // 192.168.1.10 to 8.8.8.8
        0xd4, 0x31, 0x00, 0x35, 0x00, 0x25, 0xde, 0x3f, // UDP 54321 to 53
        0xab, 0xcd, 0x01, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // DNS
        0x07, 0x65, 0x78, 0x61, 0x6d, 0x70, 0x6c, 0x65, 0x03, 0x63, 0x6f, 0x6d, 0x00, 0x00, 0x01, 0x00, 0x01,
    ];

    fn with(change: impl FnOnce(&mut [u8; 71])) -> Buffer {
        let mut bytes = DNS;
        change(&mut bytes);
        Buffer::new(&bytes)
    }

    #[test]
    fn both_parsers_read_the_same() {
        let mut frame = Buffer::new(&DNS);
        let (plain, whole) = (parse_plain(&mut frame, 1).expect("it is plain"), parse(&mut frame, 1).expect("it fits"));
        assert_eq!(std::format!("{plain:?}"), std::format!("{whole:?}"));
        assert_eq!((plain.key.source_port, plain.key.destination_port), ([0xd4, 0x31], [0, 53]));
        assert_eq!((plain.total, plain.ttl, plain.dont_fragment, plain.l4()), (57, 64, true, 34));
        assert_eq!((plain.transport, plain.fragment, plain.signal), (Transport::Udp, Fragment::Whole, status::SIGNAL));
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_other_parser() {
        for mut frame in [
            with(|bytes| bytes[14] = 0x46),
            with(|bytes| bytes[20] = 0x20),
            with(|bytes| bytes[21] = 1),
            with(|bytes| bytes[23] = 1),
        ] {
            assert!(parse_plain(&mut frame, 1).is_none() && parse(&mut frame, 1).is_some());
        }
    }

    #[test]
    fn what_does_not_fit_is_nobodys() {
        for mut frame in [
            with(|bytes| bytes[14] = 0x44),
            with(|bytes| bytes[14] = 0x65),
            with(|bytes| bytes[17] = 0x3a),
            with(|bytes| bytes[17] = 19),
            with(|bytes| bytes[17] = 27),
            with(|bytes| (bytes[23], bytes[17]) = (protocol::TCP, 39)),
            Buffer::new(&DNS[..33]),
            Buffer::new(&DNS[..70]),
        ] {
            assert!(parse_plain(&mut frame, 1).is_none() && parse(&mut frame, 1).is_none());
        }
    }

    #[test]
    fn a_later_fragment_has_no_ports_and_says_nothing() {
        let later = parse(&mut with(|bytes| (bytes[20], bytes[21]) = (0x20, 1)), 1).expect("it fits");
        assert_eq!((later.fragment, later.transport, later.signal), (Fragment::Later, Transport::Opaque, 0));
        assert_eq!((later.key.source_port, later.id), ([0; 2], [0x1c, 0x46]));
        let first = parse(&mut with(|bytes| bytes[20] = 0x20), 1).expect("it fits");
        assert_eq!((first.fragment, first.transport), (Fragment::First, Transport::Udp));
    }

    #[test]
    fn writing_changes_addresses_ports_ttl_and_both_sums() {
        let mut frame = Buffer::new(&DNS);
        let packet = parse_plain(&mut frame, 1).expect("it is plain");
        let (public, port) = ([198, 51, 100, 1], [0x20, 0]);
        let entry = FlowEntry::default();
        entry.leave_as(&FlowKey4 { source: public, source_port: port, ..packet.key });
        assert!(packet.write(&mut frame, &entry));
        let written = frame.bytes();
        // A right sum and what it covers add up to all ones (RFC 1071 §1).
        let sum = |bytes: &[u8]| {
            let sum = bytes
                .chunks(2)
                .fold(0u32, |sum, pair| sum + u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0)));
            (sum & 0xffff) + (sum >> 16)
        };
        assert_eq!((written[22], &written[26..30], &written[34..36]), (63, &public[..], &port[..]));
        assert_eq!(sum(&written[14..34]), 0xffff);
        let pseudo = sum(&[&written[26..34], &[0, 17, 0, 37], &written[34..]].concat());
        assert_eq!((pseudo & 0xffff) + (pseudo >> 16), 0xffff);
    }
}
