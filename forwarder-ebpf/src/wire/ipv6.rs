//! IPv6 (RFC 8200) with the transport fields that flow keys need. Nothing but the hop limit is ever rewritten.

use super::{ETHERNET, Fragment, Transport, icmp, protocol, take, tcp_flags};
use crate::abi::{FlowKey6, status};
use crate::frame::Frame;

/// Bytes of the fixed header.
pub const HEADER: usize = 40;
/// Extension headers that are followed to the transport header.
pub const MAX_EXTENSIONS: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Packet6 {
    /// Its flow key.
    pub key: FlowKey6,
    /// Header and payload, bytes.
    pub total: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub tos: u8,
    /// Identification of a fragment.
    pub id: [u8; 4],
    /// Place in its datagram.
    pub fragment: Fragment,
    /// What follows the last header.
    pub transport: Transport,
    /// TCP flags that state looks at, or `status::SIGNAL`.
    pub signal: u8,
    /// TCP sequence number; 0 for all other protocols.
    pub sequence: u32,
    /// ICMPv6 type, where it is ICMPv6.
    pub icmp_type: u8,
    /// Offset of the transport header in the frame.
    pub l4: usize,
}

/// Why a packet cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Headers contradict each other or do not fit.
    Malformed,
    /// More extension headers than are followed.
    Extensions,
}

/// The fixed header as a packet whose key has addresses only.
#[inline(always)]
fn parse_fixed<F: Frame>(frame: &mut F, side: u8) -> Option<Packet6> {
    let length = frame.length();
    let header = frame.at::<{ ETHERNET + HEADER }>(0)?;
    let total = HEADER as u32 + u32::from(u16::from_be_bytes(take(header, 18)?));
    if header[14] >> 4 != 6 || ETHERNET + total as usize > length {
        return None;
    }
    let key = FlowKey6::pack(addresses(header)?, 0, header[20], side);
    Some(Packet6 {
        key,
        total,
        hop_limit: header[21],
        tos: (header[14] << 4) | (header[15] >> 4),
        id: [0; 4],
        fragment: Fragment::Whole,
        transport: Transport::Opaque,
        signal: status::SIGNAL,
        sequence: 0,
        icmp_type: 0,
        l4: ETHERNET + HEADER,
    })
}

/// The packet, if it is of the plain kind that the fast path takes: TCP or UDP directly behind the fixed header.
#[inline(always)]
pub fn parse_plain<F: Frame>(frame: &mut F, side: u8) -> Option<Packet6> {
    const L4: usize = ETHERNET + HEADER;
    let length = frame.length();
    let header = frame.at::<{ L4 + 8 }>(0)?;
    let payload = u16::from_be_bytes(take(header, 18)?) as usize;
    if header[14] >> 4 != 6 || L4 + payload > length {
        return None;
    }
    let (protocol, hop_limit, tos) = (header[20], header[21], (header[14] << 4) | (header[15] >> 4));
    let (addresses, ports) = (addresses(header)?, u32::from_ne_bytes(take(header, L4)?));
    let (transport, signal, sequence) = match protocol {
        protocol::UDP if payload >= 8 => (Transport::Udp, status::SIGNAL, 0),
        protocol::TCP if payload >= 20 => {
            let header = frame.at::<{ L4 + 20 }>(0)?;
            (Transport::Tcp, header[L4 + 13] & tcp_flags::TRACKED, u32::from_be_bytes(take(header, L4 + 4)?))
        }
        _ => return None,
    };
    Some(Packet6 {
        // Last, and never looked into: its words shall stay whole.
        key: FlowKey6::pack(addresses, ports, protocol, side),
        total: (HEADER + payload) as u32,
        hop_limit,
        tos,
        id: [0; 4],
        fragment: Fragment::Whole,
        transport,
        signal,
        sequence,
        icmp_type: 0,
        l4: L4,
    })
}

/// Both addresses, in the words of `FlowKey6::pack`.
#[inline(always)]
fn addresses(header: &[u8]) -> Option<[u64; 4]> {
    let word = |at| Some(u64::from_ne_bytes(take(header, at)?));
    Some([word(22)?, word(30)?, word(38)?, word(46)?])
}

/// What the extension headers say.
struct Extensions {
    protocol: u8,
    l4: usize,
    id: [u8; 4],
    fragment: Fragment,
}

/// Follows the extension headers to the transport header, or to a fragment header with an offset.
#[inline(always)]
fn follow<F: Frame>(frame: &mut F) -> Result<Extensions, Unreadable> {
    let next = frame.at::<{ ETHERNET + 8 }>(0).ok_or(Unreadable::Malformed)?[20];
    let mut found = Extensions { protocol: next, l4: ETHERNET + HEADER, id: [0; 4], fragment: Fragment::Whole };
    let mut followed = 0;
    while followed < MAX_EXTENSIONS {
        match found.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let header = frame.at::<2>(found.l4).ok_or(Unreadable::Malformed)?;
                found.protocol = header[0];
                found.l4 += 8 + 8 * usize::from(header[1]);
            }
            FRAGMENT => {
                let header = frame.at::<8>(found.l4).ok_or(Unreadable::Malformed)?;
                found.protocol = header[0];
                found.id = [header[4], header[5], header[6], header[7]];
                let place = u16::from_be_bytes([header[2], header[3]]);
                found.l4 += 8;
                if place & 0xfff8 != 0 {
                    found.fragment = Fragment::Later;
                    return Ok(found);
                }
                if place & 1 != 0 {
                    found.fragment = Fragment::First;
                }
            }
            _ => return Ok(found),
        }
        followed += 1;
    }
    match found.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => Err(Unreadable::Extensions),
        _ => Ok(found),
    }
}

/// Takes the packet apart, whatever it is, into `packet`.
///
/// # Errors
/// `Unreadable` says why it cannot be taken apart.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F, side: u8, packet: &mut Packet6) -> Result<(), Unreadable> {
    let found = follow(frame)?;
    *packet = parse_fixed(frame, side).ok_or(Unreadable::Malformed)?;
    packet.key.protocol = found.protocol;
    packet.l4 = found.l4;
    packet.id = found.id;
    packet.fragment = found.fragment;
    if found.fragment == Fragment::Later {
        packet.signal = 0;
        return Ok(());
    }
    if packet.l4 > ETHERNET + packet.total as usize || !parse_transport(frame, packet) {
        return Err(Unreadable::Malformed);
    }
    Ok(())
}

/// Fills in ports, signal and kind from the transport header. False when it does not fit.
#[inline(always)]
fn parse_transport<F: Frame>(frame: &mut F, packet: &mut Packet6) -> bool {
    let end = ETHERNET + packet.total as usize;
    match packet.key.protocol {
        protocol::TCP => {
            let Some(tcp) = frame.at::<20>(packet.l4) else { return false };
            take_ports(tcp, &mut packet.key);
            packet.signal = tcp[13] & tcp_flags::TRACKED;
            packet.sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            packet.transport = Transport::Tcp;
            packet.l4 + 20 <= end
        }
        protocol::UDP => {
            let Some(udp) = frame.at::<8>(packet.l4) else { return false };
            take_ports(udp, &mut packet.key);
            packet.transport = Transport::Udp;
            packet.l4 + 8 <= end
        }
        protocol::ICMPV6 => {
            let Some(message) = frame.at::<{ icmp::HEADER }>(packet.l4) else { return false };
            packet.icmp_type = message[0];
            let identifier = [message[4], message[5]];
            packet.transport = match message[0] {
                icmp::v6::ECHO => {
                    packet.key.source_port = identifier;
                    Transport::Echo
                }
                icmp::v6::ECHO_REPLY => {
                    packet.key.destination_port = identifier;
                    Transport::EchoReply
                }
                0..=127 => Transport::Error,
                _ => Transport::Control,
            };
            packet.l4 + icmp::HEADER <= end
        }
        _ => true,
    }
}

/// Ports stand first in TCP and UDP.
#[inline(always)]
fn take_ports(header: &[u8], key: &mut FlowKey6) {
    if let (Some(source), Some(destination)) = (take(header, 0), take(header, 2)) {
        (key.source_port, key.destination_port) = (source, destination);
    }
}

impl Packet6 {
    /// The destination is a group.
    #[inline(always)]
    pub fn to_group(&self) -> bool {
        let [first, ..] = self.key.destination;
        first == 0xff
    }

    /// Source or destination is link-local, or it is neighbour discovery: never forwarded (RFC 4291 §2.5.6).
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        let [a, b, ..] = self.key.source;
        let [x, y, ..] = self.key.destination;
        (a == 0xfe && b & 0xc0 == 0x80)
            || (x == 0xfe && y & 0xc0 == 0x80)
            || (self.key.protocol == protocol::ICMPV6 && icmp::v6::NEIGHBOUR_DISCOVERY.contains(&self.icmp_type))
    }

    /// An address that no packet on the wire has: unspecified, loopback, or a group as the source.
    #[inline(always)]
    pub fn is_martian(&self) -> bool {
        let [first, ..] = self.key.source;
        first == 0xff || at_most_one(&self.key.source) || at_most_one(&self.key.destination)
    }

    /// Writes the hop limit. False when the frame does not have the bytes.
    #[inline(always)]
    pub fn write<F: Frame>(&self, frame: &mut F) -> bool {
        let Some(header) = frame.at::<{ ETHERNET + 8 }>(0) else { return false };
        header[21] = header[21].wrapping_sub(1);
        true
    }
}

/// `::` or `::1`.
#[inline(always)]
fn at_most_one(address: &[u8; 16]) -> bool {
    u128::from_be_bytes(*address) <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Buffer, Sim};
    use crate::tables::Tables;
    use std::vec::Vec;

    const ADDRESSES: [u8; 32] = [
        0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, // 2001:db8:1::10
        0x20, 0x01, 0x0d, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, // 2001:db8:3::10
    ];
    const SYN: [u8; 20] = [0x9c, 0x40, 1, 0xbb, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0];
    const HOP: [u8; 8] = [60, 0, 5, 2, 0, 0, 1, 0];
    const DESTINATION: [u8; 8] = [44, 0, 1, 4, 0, 0, 0, 0];

    fn frame(next: u8, payload: &[u8]) -> Buffer {
        let header = [0x6a, 0xb0, 0, 0, 0, payload.len() as u8, next, 64];
        Buffer::new(&[&[2; 12][..], &[0x86, 0xdd], &header, &ADDRESSES, payload].concat())
    }

    fn parsed(next: u8, payload: &[u8]) -> Result<Packet6, Unreadable> {
        let mut packet = Sim::new().packet6().expect("there is memory");
        parse(&mut frame(next, payload), 1, &mut packet).map(|()| *packet)
    }

    fn fragment(next: u8, place: u16) -> [u8; 8] {
        let [high, low] = place.to_be_bytes();
        [next, 0, high, low, 0xde, 0xad, 0xbe, 0xef]
    }

    #[test]
    fn both_parsers_read_the_same() {
        let (plain, whole) =
            (parse_plain(&mut frame(6, &SYN), 1).expect("it is plain"), parsed(6, &SYN).expect("it fits"));
        assert_eq!(std::format!("{plain:?}"), std::format!("{whole:?}"));
        assert_eq!((plain.key.source_port, plain.key.destination_port), ([0x9c, 0x40], [1, 0xbb]));
        assert_eq!((plain.total, plain.hop_limit, plain.tos, plain.signal), (60, 64, 0xab, tcp_flags::SYN));
        assert_eq!((&plain.key.source[..], &plain.key.destination[..]), ADDRESSES.split_at(16));
    }

    #[test]
    fn extension_headers_lead_to_the_ports() {
        let first = parsed(0, &[&HOP[..], &DESTINATION, &fragment(6, 1), &SYN].concat()).expect("it fits");
        assert_eq!((first.key.protocol, first.l4, first.transport), (6, 54 + 24, Transport::Tcp));
        assert_eq!((first.fragment, first.id), (Fragment::First, [0xde, 0xad, 0xbe, 0xef]));
        let atomic = parsed(44, &[&fragment(6, 0)[..], &SYN].concat()).expect("it fits");
        assert_eq!(atomic.fragment, Fragment::Whole);
        let later = parsed(44, &[&fragment(6, 8)[..], &SYN].concat()).expect("it fits");
        assert_eq!((later.fragment, later.transport, later.signal), (Fragment::Later, Transport::Opaque, 0));
    }

    #[test]
    fn too_many_or_broken_extension_headers_are_told_apart() {
        let chain = |count: usize| {
            let mut bytes: Vec<u8> = (1..count).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
            bytes.extend([6, 0, 1, 4, 0, 0, 0, 0]);
            bytes.extend(SYN);
            parsed(60, &bytes).map(|packet| packet.l4)
        };
        assert_eq!(chain(MAX_EXTENSIONS), Ok(54 + 8 * MAX_EXTENSIONS));
        assert_eq!(chain(MAX_EXTENSIONS + 1), Err(Unreadable::Extensions));
        assert_eq!(parsed(60, &[6, 9, 0, 0, 0, 0, 0, 0]).map(|packet| packet.l4), Err(Unreadable::Malformed));
        assert_eq!(parsed(6, &SYN[..19]).map(|packet| packet.l4), Err(Unreadable::Malformed));
    }
}
