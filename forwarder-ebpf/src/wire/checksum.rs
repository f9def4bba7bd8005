//! The Internet checksum, changed in place (RFC 1071, RFC 1624).

/// Folds carries back in until 16 bits remain.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of changes, to be added to a complemented checksum: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// A word changes from `old` to `new`.
    #[inline(always)]
    pub fn word(mut self, old: [u8; 2], new: [u8; 2]) -> Self {
        self.0 += u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new));
        self
    }

    /// Four words change at once; the sum of halves folds to that of quarters.
    #[inline(always)]
    pub fn words(mut self, old: u64, new: u64) -> Self {
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        self.0 += halves(!old) + halves(new);
        self
    }

    /// An IPv4 address changes.
    #[inline(always)]
    pub fn address(self, old: [u8; 4], new: [u8; 4]) -> Self {
        let [a, b, c, d] = old;
        let [w, x, y, z] = new;
        self.word([a, b], [w, x]).word([c, d], [y, z])
    }

    /// Both changes together.
    #[inline(always)]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// TTL goes down by one; the same change whatever it was.
    #[inline(always)]
    pub fn ttl_step(self) -> Self {
        self.word([1, 0], [0, 0])
    }

    /// As `apply` takes it.
    #[inline(always)]
    pub fn finish(self) -> u16 {
        // What can be added without overflow: 2^29 changes.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }
}

/// The checksum after a change.
#[inline(always)]
pub fn apply(checksum: [u8; 2], delta: u16) -> [u8; 2] {
    (!fold(u32::from(!u16::from_ne_bytes(checksum)) + u32::from(delta))).to_ne_bytes()
}

/// The same for UDP, where zero means "none" and is kept, and a result of zero is sent as all ones (RFC 768).
#[inline(always)]
pub fn apply_udp(checksum: [u8; 2], delta: u16) -> [u8; 2] {
    if checksum == [0, 0] {
        return checksum;
    }
    let changed = apply(checksum, delta);
    if changed == [0, 0] { [0xff, 0xff] } else { changed }
}

/// Adds 32 bits of packet to a running sum.
#[inline(always)]
pub fn add(sum: u64, word: [u8; 4]) -> u64 {
    sum + u64::from(u32::from_ne_bytes(word))
}

/// The checksum of everything added.
#[inline(always)]
pub fn finish(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    (!fold(sum as u32)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn full(words: &[u16]) -> u16 {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        while !bytes.len().is_multiple_of(4) {
            bytes.push(0);
        }
        let sum = bytes.chunks_exact(4).fold(0, |sum, c| add(sum, [c[0], c[1], c[2], c[3]]));
        u16::from_be_bytes(finish(sum))
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(full(&[0x0001, 0xf203, 0xf4f5, 0xf6f7]), !0xddf2);
    }

    #[test]
    fn a_change_in_place_equals_a_full_recompute() {
        let mut state = 7u32;
        for _ in 0..100_000 {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 12) as u16
            };
            let (mut words, new) = ([next(), next(), next()], next());
            let before = full(&words);
            let delta = Delta::default().word(words[1].to_be_bytes(), new.to_be_bytes()).finish();
            words[1] = new;
            let after = u16::from_be_bytes(apply(before.to_be_bytes(), delta));
            // All zeros and all ones are the same number; only a sum of nothing but zeros is ambiguous.
            assert!(after == full(&words) || words == [0, 0, 0], "{words:x?}");
        }
    }

    #[test]
    fn ttl_step_is_one_lower_ttl() {
        for ttl in 1..=255u8 {
            let words = [u16::from_be_bytes([ttl, 17]), 0x4500];
            let changed = apply(full(&words).to_be_bytes(), Delta::default().ttl_step().finish());
            assert_eq!(u16::from_be_bytes(changed), full(&[u16::from_be_bytes([ttl - 1, 17]), 0x4500]));
        }
    }

    #[test]
    fn udp_without_checksum_stays_so_and_never_becomes_so() {
        assert_eq!(apply_udp([0, 0], 1234), [0, 0]);
        let delta = Delta::default().word([0, 1], [0, 2]).finish();
        for sum in 1..=0xffffu16 {
            assert_ne!(apply_udp(sum.to_be_bytes(), delta), [0, 0]);
        }
    }
}
