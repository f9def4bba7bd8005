//! Flow table keys: the tuple of one direction of a flow, as its packets arrive.

use super::slot::{Shape, mix};
use super::{Family, FlowEntry, SharedU64};
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
    /// Two words: so the key is hashed and compared, and stays in registers.
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
    /// Which table it is in.
    const FAMILY: Family;
    /// How roomy its table is. At seven entries in eighteen slots three of four stand where they belong; IPv6's larger slots
    /// are packed closer, so that both entries of a connection take at most 384 bytes.
    const SLOTS_FOR_7_ENTRIES: u32;
    /// The key as it lies in a slot: its words. The last 16 bits, which are no part of a key, are `Slot::passed`.
    type Words: core::fmt::Debug + Default + FromBytes + KnownLayout;

    /// IP protocol number.
    fn protocol(&self) -> u8;
    /// `Side` of the interface that its packets enter by.
    fn side(&self) -> u8;
    /// The key of the packets that answer, when nothing is translated and they enter by `side`.
    fn reversed(&self, side: u8) -> Self;
    /// The key of the packets that answer those of `entry`, whose own key is `self`.
    fn partner(&self, entry: &FlowEntry) -> Self;
    /// Hash under the table's secret.
    fn hash(&self, shape: &Shape) -> u64;
    /// Is it this one?
    fn is(&self, words: &Self::Words) -> bool;
    /// Writes it.
    fn write(&self, words: &Self::Words);
    /// Reads it.
    fn read(words: &Self::Words) -> Self;
    /// The word that has 16 bits to spare.
    fn last(words: &Self::Words) -> &SharedU64;
}

/// The bits of the last word that are the key's.
const KEY_BITS: u64 = (1 << 48) - 1;

impl FlowKey for FlowKey4 {
    const FAMILY: Family = Family::V4;
    const SLOTS_FOR_7_ENTRIES: u32 = 18;
    type Words = [SharedU64; 2];

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn side(&self) -> u8 {
        self.side
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
            source: entry.destination(),
            destination: entry.source(),
            source_port: entry.destination_port(),
            destination_port: entry.source_port(),
            protocol: self.protocol,
            side: entry.partner_side(),
            zero: [0; 2],
        }
    }

    #[inline(always)]
    fn hash(&self, shape: &Shape) -> u64 {
        let [a, b]: [u64; 2] = zerocopy::transmute!(*self);
        let [k, l, m, n, ..] = shape.secret;
        mix(mix(0, a, (k, l)), b, (m, n))
    }

    #[inline(always)]
    fn is(&self, words: &Self::Words) -> bool {
        let [a, b]: [u64; 2] = zerocopy::transmute!(*self);
        (a ^ words[0].load()) | ((b ^ words[1].load()) & KEY_BITS) == 0
    }

    #[inline(always)]
    fn write(&self, words: &Self::Words) {
        let [a, b]: [u64; 2] = zerocopy::transmute!(*self);
        words[0].store(a);
        write_last(&words[1], b);
    }

    #[inline(always)]
    fn read(words: &Self::Words) -> Self {
        zerocopy::transmute!([words[0].load(), words[1].load() & KEY_BITS])
    }

    #[inline(always)]
    fn last(words: &Self::Words) -> &SharedU64 {
        &words[1]
    }
}

impl FlowKey for FlowKey6 {
    const FAMILY: Family = Family::V6;
    const SLOTS_FOR_7_ENTRIES: u32 = 14;
    type Words = [SharedU64; 5];

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn side(&self) -> u8 {
        self.side
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
        self.reversed(entry.partner_side())
    }

    #[inline(always)]
    fn hash(&self, shape: &Shape) -> u64 {
        let [a, b, c, d, e]: [u64; 5] = zerocopy::transmute!(*self);
        let [k, l, m, n, o, p, q, r, s, t] = shape.secret;
        mix(mix(mix(mix(mix(0, a, (k, l)), b, (m, n)), c, (o, p)), d, (q, r)), e, (s, t))
    }

    #[inline(always)]
    fn is(&self, words: &Self::Words) -> bool {
        let [a, b, c, d, e]: [u64; 5] = zerocopy::transmute!(*self);
        let [v, w, x, y, z] = words;
        let first = (a ^ v.load()) | (b ^ w.load()) | (c ^ x.load()) | (d ^ y.load());
        first | ((e ^ z.load()) & KEY_BITS) == 0
    }

    #[inline(always)]
    fn write(&self, words: &Self::Words) {
        let [a, b, c, d, e]: [u64; 5] = zerocopy::transmute!(*self);
        words[0].store(a);
        words[1].store(b);
        words[2].store(c);
        words[3].store(d);
        write_last(&words[4], e);
    }

    #[inline(always)]
    fn read(words: &Self::Words) -> Self {
        let [a, b, c, d, e] = words;
        zerocopy::transmute!([a.load(), b.load(), c.load(), d.load(), e.load() & KEY_BITS])
    }

    #[inline(always)]
    fn last(words: &Self::Words) -> &SharedU64 {
        &words[4]
    }
}

/// Replaces the key's bits, which are ours; the others may change meanwhile. What is added borrows from them what the old bits
/// give back.
#[inline(always)]
fn write_last(word: &SharedU64, bits: u64) {
    word.add((bits & KEY_BITS).wrapping_sub(word.load() & KEY_BITS));
}

// `pack` puts the pieces where a little-endian machine has them; so are x86-64, arm64 and `bpfel`.
const _: () = assert!(cfg!(target_endian = "little"));
const _: () = assert!(size_of::<FlowKey4>() == 16);
const _: () = assert!(size_of::<FlowKey6>() == 40);
