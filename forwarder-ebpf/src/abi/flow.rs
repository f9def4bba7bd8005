//! Flow table keys and the flow entry. What the bits of `status` mean over time is `conntrack`'s.

use super::{SharedU16, SharedU32, SharedU64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One direction of an IPv4 flow, as its packets arrive. ICMP echo has its identifier in the port of the asking side and
/// 0 in the other; protocols without ports have 0 in both.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct FlowKey4 {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// `Side` of the interface that it enters by, so that the outside cannot speak for the inside.
    pub side: u8,
    /// Zero.
    pub zero: [u8; 2],
}

/// One direction of an IPv6 flow, as its packets arrive.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct FlowKey6 {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// Upper-layer protocol number.
    pub protocol: u8,
    /// `Side` of the interface that it enters by.
    pub side: u8,
    /// Zero.
    pub zero: [u8; 2],
}

impl FlowKey4 {
    /// From addresses and ports as they stand side by side in a packet, read in the machine's order.
    ///
    /// Two stores of eight bytes: the hash reads the key in words, and waits for every word that was stored in pieces.
    #[inline(always)]
    pub fn pack(addresses: u64, ports: u32, protocol: u8, side: u8) -> Self {
        zerocopy::transmute!([addresses, u64::from(ports) | u64::from(protocol) << 32 | u64::from(side) << 40])
    }
}

impl FlowKey6 {
    /// From addresses and ports as they stand side by side in a packet, read in the machine's order; see `FlowKey4::pack`.
    #[inline(always)]
    pub fn pack(addresses: [u64; 4], ports: u32, protocol: u8, side: u8) -> Self {
        let [a, b, c, d] = addresses;
        zerocopy::transmute!([a, b, c, d, u64::from(ports) | u64::from(protocol) << 32 | u64::from(side) << 40])
    }
}

/// What both families' keys have in common: enough to keep flow state without knowing the family.
pub trait FlowKey: Copy {
    /// IP protocol number.
    fn protocol(&self) -> u8;
    /// The key of the packets that answer, when nothing is translated and they enter by `side`.
    fn reversed(&self, side: u8) -> Self;
    /// The key of the packets that answer those of `entry`, whose own key is `self`.
    fn partner(&self, entry: &FlowEntry) -> Self;
}

impl FlowKey for FlowKey4 {
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn reversed(&self, side: u8) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            side,
            zero: [0; 2],
        }
    }

    #[inline(always)]
    fn partner(&self, entry: &FlowEntry) -> Self {
        Self {
            source: entry.destination,
            destination: entry.source,
            source_port: entry.destination_port,
            destination_port: entry.source_port,
            protocol: self.protocol,
            side: entry.partner_side,
            zero: [0; 2],
        }
    }
}

impl FlowKey for FlowKey6 {
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn reversed(&self, side: u8) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            side,
            zero: [0; 2],
        }
    }

    #[inline(always)]
    fn partner(&self, entry: &FlowEntry) -> Self {
        self.reversed(entry.partner_side)
    }
}

/// One direction of a flow: the verdict, the rewrite, the way out and the counters. 64 bytes, one cache line behind the key.
///
/// The fast path reads all of it and writes `packets`, `bytes` and `last_seen`. Addresses and ports below are those that
/// the packet leaves with; without translation they equal the key's (IPv4) or are zero (IPv6).
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct FlowEntry {
    /// Packets forwarded in this direction.
    pub packets: SharedU64,
    /// Bytes forwarded in this direction: IP total length, without Ethernet and padding.
    pub bytes: SharedU64,
    /// The way out: a packed `NextHop`, one word so that it changes at once.
    pub next_hop: SharedU64,
    /// Ticks at the last packet of this direction.
    pub last_seen: SharedU32,
    /// `Control::epoch` under which route and policy were last asked.
    pub epoch: SharedU32,
    /// Bits of `status`.
    pub status: SharedU32,
    /// Ticks when the connection (or its latest reincarnation) began.
    pub first_seen: SharedU32,
    /// Source address to leave with (IPv4).
    pub source: [u8; 4],
    /// Destination address to leave with (IPv4).
    pub destination: [u8; 4],
    /// Source port to leave with, network order.
    pub source_port: [u8; 2],
    /// Destination port to leave with, network order.
    pub destination_port: [u8; 2],
    /// What to add to the complemented IP header checksum: address changes and the TTL step (RFC 1624).
    pub ip_delta: u16,
    /// What to add to the complemented TCP, UDP or ICMP checksum.
    pub l4_delta: u16,
    /// Largest IP packet that the way out takes, bytes.
    pub mtu: SharedU16,
    /// Firewall rule that admitted the flow, 0 for the default of its side.
    pub rule: SharedU16,
    /// `Side` of the interface that the answers enter by.
    pub partner_side: u8,
    /// Zero.
    pub zero: u8,
    /// Zero. A field of its own: three bytes in a row are written as one and an odd two, which the verifier refuses.
    pub zeros: u16,
}

// `pack` puts the pieces where a little-endian machine has them; so are x86-64, arm64 and `bpfel`.
const _: () = assert!(cfg!(target_endian = "little"));
const _: () = assert!(size_of::<FlowKey4>() == 16);
const _: () = assert!(size_of::<FlowKey6>() == 40);
const _: () = assert!(size_of::<FlowEntry>() == 64);

/// Where packets of a flow leave: egress interface and the next hop's link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Egress interface index; 16 bits are enough, `run` refuses higher ones.
    pub ifindex: u16,
    /// Link-layer address to send to.
    pub mac: [u8; 6],
}

impl NextHop {
    /// As it stands in `FlowEntry::next_hop`: the address in the low six bytes as they go on the wire, then the index.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        let [x, y] = self.ifindex.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, x, y])
    }

    /// Inverse of `pack`.
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, x, y] = word.to_ne_bytes();
        Self { ifindex: u16::from_ne_bytes([x, y]), mac: [a, b, c, d, e, f] }
    }
}

/// Bits of `FlowEntry::status`. They change only by atomic OR and AND, so two CPUs on one connection lose none.
pub mod status {
    /// Low byte: a packet whose signal (TCP flags, or `SIGNAL` for all other protocols) meets this mask takes the slow path.
    pub const WATCH: u32 = 0xff;
    /// Signal of every packet that is not TCP. It is TCP's CWR bit, which TCP signals leave out.
    pub const SIGNAL: u8 = 0x80;
    /// Second byte: OR of the TCP flags FIN, SYN, RST and ACK seen in this direction.
    pub const FLAGS_SHIFT: u32 = 8;
    /// An answer has been seen. This and the next five stand equal in both entries of a connection.
    pub const REPLIED: u32 = 1 << 16;
    /// UDP with more than one request and response.
    pub const STREAM: u32 = 1 << 17;
    /// TCP handshake complete.
    pub const ESTABLISHED: u32 = 1 << 18;
    /// FIN from the originator.
    pub const FIN_ORIGINATOR: u32 = 1 << 19;
    /// FIN from the responder.
    pub const FIN_RESPONDER: u32 = 1 << 20;
    /// RST from either.
    pub const RESET: u32 = 1 << 21;
    /// Picked up in mid-stream: the handshake was not seen.
    pub const LOOSE: u32 = 1 << 22;
    /// This entry is the originator's.
    pub const ORIGINATOR: u32 = 1 << 24;
    /// This entry rewrites the source.
    pub const SOURCE_NAT: u32 = 1 << 25;
    /// This entry rewrites the destination.
    pub const DESTINATION_NAT: u32 = 1 << 26;
    /// All bits that both entries share.
    pub const SHARED: u32 = REPLIED | STREAM | ESTABLISHED | FIN_ORIGINATOR | FIN_RESPONDER | RESET | LOOSE;
}
