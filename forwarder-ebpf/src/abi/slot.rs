//! The flow table's memory: slots in one array per family, its shape, and how much of it is used. What the words mean over
//! time is `flow_table`'s.

use super::{FlowEntry, FlowKey, FlowKey4, FlowKey6, SharedU32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Address families, as the index of `SHAPES` and `USED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// What never changes in a table, from the day that it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Shape {
    /// Slots that can be somebody's first choice; the array has `flow_table::WINDOW` more.
    pub homes: u32,
    /// Entries that it takes.
    pub most: u32,
    /// Secret of the hash, so that nobody can choose flows that meet.
    pub secret: [u32; 10],
}

/// Slots in use, those on their way out included. A cache line of its own: every new flow of every CPU writes it.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Used {
    /// So many.
    pub slots: SharedU32,
    /// Zero.
    pub zeros: [u32; 15],
}

/// A place for one entry.
#[derive(Debug, Default, FromBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Slot<K: FlowKey> {
    /// Key of its entry, and `passed`.
    pub key: K::Words,
    /// Its entry; in the upper two bits of `status` its state, and while it is being written, in the others the hash's.
    pub entry: FlowEntry,
}

impl<K: FlowKey> Slot<K> {
    /// One more in `passed`, to be added to the key's last word.
    const ONE: u64 = 1 << 48;

    /// How many entries had to go past it to find their place.
    #[inline(always)]
    pub fn passed(&self) -> u64 {
        K::last(&self.key).load() >> 48
    }

    /// One entry more goes past.
    #[inline(always)]
    pub fn let_pass(&self) {
        K::last(&self.key).add(Self::ONE);
    }

    /// One entry less goes past.
    #[inline(always)]
    pub fn take_back(&self) {
        K::last(&self.key).add(Self::ONE.wrapping_neg());
    }
}

/// What the programs that tend a flow table are given as their frame: `retire4`, `place4` and those of IPv6 keys, `vacate4` and
/// `vacate6` indexes, `forget4` and `forget6` indexes and bits of the status, one after the other behind
/// [`HEADER`](tend::HEADER) bytes of nothing. They return how many of them they found.
pub mod tend {
    /// Elements that one run takes.
    pub const BATCH: usize = 16;
    /// Bytes before the first: a frame has at least an Ethernet header.
    pub const HEADER: usize = 16;
}

/// Takes a word of the key into the hash: the product of its halves, each with its secret added. Two keys meet with a
/// probability of 2^-32 over all secrets (NH, RFC 4418 §5.2.3).
#[inline(always)]
pub(super) fn mix(sum: u64, word: u64, (low, high): (u32, u32)) -> u64 {
    let product = u64::from((word as u32).wrapping_add(low)) * u64::from(((word >> 32) as u32).wrapping_add(high));
    sum.wrapping_add(product)
}

const _: () = assert!(size_of::<Shape>() == 48);
const _: () = assert!(size_of::<Used>() == 64);
const _: () = assert!(size_of::<Slot<FlowKey4>>() == 64);
const _: () = assert!(size_of::<Slot<FlowKey6>>() == 88);
