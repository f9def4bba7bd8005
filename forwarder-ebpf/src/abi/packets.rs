//! A direction's packets, and when it was last placed in TCP's sequence space, in one word.

use super::SharedU64;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// Packets of a direction. The fast path only ever adds to it; nine years at a million packets a second would fill its lower 48
/// bits. Those above say at which count `sequence` last saw where the direction stands.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub struct Packets(SharedU64);

/// Bits that count.
const COUNTED: u32 = 48;
/// Packets in one unit of the rest, which comes round after 2^32 packets.
const UNIT_SHIFT: u32 = 16;

impl Packets {
    /// That many more.
    #[inline(always)]
    pub fn add(&self, packets: u64) {
        self.0.add(packets);
    }

    /// How many there have been.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        self.0.load() & ((1 << COUNTED) - 1)
    }

    /// Takes over another's word. For entries that nobody finds yet.
    #[inline(always)]
    pub(super) fn copy_from(&self, other: &Self) {
        self.0.store(other.0.load());
    }

    /// The direction has just been placed. Of two CPUs that say so at the same time the second may leave a time that is not
    /// yet: it reads as very long ago.
    #[inline(always)]
    pub fn place(&self) {
        let word = self.0.load();
        let unit = word >> UNIT_SHIFT;
        self.0.add(unit.wrapping_sub(word >> COUNTED) << COUNTED);
    }

    /// Packets since it was last placed, or up to [`Packets::IN_A_UNIT`] more.
    #[inline(always)]
    pub fn since_placed(&self) -> u64 {
        let (word, mask) = (self.0.load(), (1 << (u64::BITS - COUNTED)) - 1);
        let units = (word >> UNIT_SHIFT).wrapping_sub(word >> COUNTED) & mask;
        units << UNIT_SHIFT | word & (Self::IN_A_UNIT - 1)
    }

    /// How exact that is.
    pub const IN_A_UNIT: u64 = 1 << UNIT_SHIFT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placing_does_not_disturb_the_count() {
        let packets = Packets::default();
        for (more, since) in [(5, 5), (70_000, 70_005), (3 << 31, (3 << 31) + 70_005 - (1 << 32))] {
            packets.add(more);
            assert_eq!(packets.since_placed(), since);
        }
        let count = packets.load();
        packets.place();
        assert_eq!((packets.load(), packets.since_placed()), (count, count % Packets::IN_A_UNIT));
        packets.add(1 << 20);
        packets.place();
        packets.place();
        assert_eq!((packets.load(), packets.since_placed()), (count + (1 << 20), count % Packets::IN_A_UNIT));
        let copy = Packets::default();
        copy.copy_from(&packets);
        assert_eq!((copy.load(), copy.since_placed()), (packets.load(), packets.since_placed()));
    }

    #[test]
    fn placed_twice_at_once_is_placed_long_ago() {
        let (packets, other) = (Packets::default(), Packets::default());
        packets.add(3 << UNIT_SHIFT);
        other.copy_from(&packets);
        // Both have read the same word, and both add what it asked for.
        packets.place();
        packets.0.add(packets.0.load() & !((1 << COUNTED) - 1));
        assert!(packets.since_placed() > 1 << 31, "{}", packets.since_placed());
        assert_eq!(packets.load(), other.load());
    }
}
