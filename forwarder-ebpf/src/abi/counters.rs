//! Counter numbers, and the histogram of processing times.

use super::MAX_IFACES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Outcomes that one ingress interface can have: 0 to 31 forwarded to that slot, then passes, then drops. See `verdict`.
pub const OUTCOMES: u32 = 128;

/// Frames and their bytes with one outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Counter {
    /// Frames.
    pub packets: u64,
    /// Bytes of the frames, Ethernet header and padding included, as they came: what `ip -s link` counts.
    pub bytes: u64,
}

/// Index in `COUNTERS` of an outcome of frames that entered by `slot`.
#[inline(always)]
pub const fn counter_index(slot: u8, outcome: u32) -> u32 {
    (slot as u32 % MAX_IFACES) * OUTCOMES + outcome
}

/// Buckets of the processing time histogram: 16 linear ones below 16 ns, then 16 an octave up to 2^20 ns.
pub const DWELL_BUCKETS: u32 = 16 + 16 * 16 + 1;

/// The bucket that a time in ns belongs to; 6 % wide at most.
#[inline(always)]
pub fn dwell_bucket(ns: u64) -> u32 {
    if ns < 16 {
        return ns as u32;
    }
    if ns >= 1 << 20 {
        return DWELL_BUCKETS - 1;
    }
    let ns = ns as u32;
    let mut octave = 4;
    if ns >> 12 != 0 {
        octave = 12;
    }
    if ns >> (octave + 4) != 0 {
        octave += 4;
    }
    if ns >> (octave + 2) != 0 {
        octave += 2;
    }
    if ns >> (octave + 1) != 0 {
        octave += 1;
    }
    16 + (octave - 4) * 16 + ((ns >> (octave - 4)) & 15)
}

/// The middle of a bucket in ns, for reading the histogram back.
pub fn dwell_bucket_ns(bucket: u32) -> u64 {
    if bucket < 16 {
        return u64::from(bucket);
    }
    let octave = (bucket - 16) / 16;
    let width = 1u64 << octave;
    (16 + u64::from((bucket - 16) % 16)) * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_own_middle_and_grows_with_time() {
        for bucket in 0..DWELL_BUCKETS {
            assert_eq!(dwell_bucket(dwell_bucket_ns(bucket)), bucket);
        }
        let mut last = 0;
        for ns in 0..(1u64 << 20) + 5 {
            let bucket = dwell_bucket(ns);
            assert!(bucket == last || bucket == last + 1, "{ns}");
            last = bucket;
        }
    }
}
