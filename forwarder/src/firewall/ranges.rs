//! Sets of numbers as ranges: addresses, services, ways. The numbers are those of `forwarder_ebpf::abi::firewall`.

use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Disjoint ranges in rising order, both ends included, none touching the next. Shared, so that a copy costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ranges(Arc<[(u128, u128)]>);

impl Ranges {
    /// Everything up to `last`.
    pub fn up_to(last: u128) -> Self {
        Self([(0, last)].into())
    }

    /// The ranges themselves.
    pub fn as_slice(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `number` is in it.
    pub fn contains(&self, number: u128) -> bool {
        let at = self.0.partition_point(|(first, _)| *first <= number);
        at.checked_sub(1).is_some_and(|at| number <= self.0[at].1)
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        let mut own = self.0.iter().peekable();
        other.0.iter().all(|(first, last)| {
            while own.next_if(|(_, end)| end < first).is_some() {}
            own.peek().is_some_and(|(start, end)| start <= first && last <= end)
        })
    }

    /// What of `0..=last` is not in it.
    pub fn complement(&self, last: u128) -> Self {
        let (mut rest, mut next) = (Vec::new(), Some(0));
        for (first, end) in self.0.iter() {
            if let Some(next) = next.filter(|next| next < first) {
                rest.push((next, first - 1));
            }
            next = if *end >= last { None } else { Some(end + 1) };
        }
        rest.extend(next.map(|next| (next, last)));
        Self(rest.into())
    }

    /// What is in it and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        let mut others = other.0.iter().copied().peekable();
        for (mut first, last) in self.0.iter().copied() {
            let mut is_used_up = false;
            while let Some((start, end)) = others.peek().copied() {
                if end < first {
                    others.next();
                    continue;
                }
                if start > last {
                    break;
                }
                if start > first {
                    rest.push((first, start - 1));
                }
                if end >= last {
                    is_used_up = true;
                    break;
                }
                first = end + 1;
            }
            if !is_used_up {
                rest.push((first, last));
            }
        }
        Self(rest.into())
    }
}

impl FromIterator<(u128, u128)> for Ranges {
    /// In any order, and they may overlap.
    fn from_iter<I: IntoIterator<Item = (u128, u128)>>(ranges: I) -> Self {
        let mut all: Vec<_> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if *end == u128::MAX || first <= *end + 1 => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged.into())
    }
}

/// Largest IPv4 address as a number.
pub const LAST4: u128 = u32::MAX as u128;
/// Largest IPv6 address as a number.
pub const LAST6: u128 = u128::MAX;

/// A set of addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ranges,
    /// IPv6.
    pub v6: Ranges,
}

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// First address.
    pub first: IpAddr,
    /// Last address, of the same family and not below the first.
    pub last: IpAddr,
}

impl fmt::Display for AddressRange {
    /// As a prefix where it is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |first: u128, last: u128| {
            let (size, aligned) = (first ^ last, first & last == first);
            (aligned && size & size.wrapping_add(1) == 0).then(|| size.count_ones())
        };
        let (host, width) = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (bits(u32::from(first).into(), u32::from(last).into()), 32),
            (IpAddr::V6(first), IpAddr::V6(last)) => (bits(first.into(), last.into()), 128),
            _ => (None, 0),
        };
        match host {
            Some(0) => self.first.fmt(f),
            Some(host) => write!(f, "{}/{}", self.first, width - host),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl From<IpNet> for AddressRange {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl fmt::Display for Addresses {
    /// Its ranges, one a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.as_slice().iter().map(|(first, last)| {
            let [first, last] = [*first, *last].map(|number| IpAddr::from(Ipv4Addr::from_bits(number as u32)));
            AddressRange { first, last }
        });
        let v6 = self.v6.as_slice().iter().map(|(first, last)| {
            let [first, last] = [*first, *last].map(|number| IpAddr::from(Ipv6Addr::from_bits(number)));
            AddressRange { first, last }
        });
        v4.chain(v6).try_for_each(|range| writeln!(f, "{range}"))
    }
}

impl Addresses {
    /// Every address.
    pub fn all() -> Self {
        Self { v4: Ranges::up_to(LAST4), v6: Ranges::up_to(LAST6) }
    }

    /// All addresses of these ranges.
    pub fn of(ranges: &[AddressRange]) -> Self {
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        let family = |is_ipv4| {
            let of_family = ranges.iter().filter(move |range: &&AddressRange| range.first.is_ipv4() == is_ipv4);
            of_family.map(|range| (number(range.first), number(range.last))).collect()
        };
        Self { v4: family(true), v6: family(false) }
    }

    /// What is in it and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self { v4: self.v4.without(&other.v4), v6: self.v6.without(&other.v6) }
    }

    /// What is in one or the other.
    pub fn union<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let v4 = all.clone().flat_map(|one| one.v4.as_slice().iter().copied()).collect();
        Self { v4, v6: all.flat_map(|one| one.v6.as_slice().iter().copied()).collect() }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.v4.covers(&other.v4) && self.v6.covers(&other.v6)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(u32::from(address).into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }

    /// Ranges of both families.
    pub fn ranges(&self) -> usize {
        self.v4.as_slice().len() + self.v6.as_slice().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(all: &[(u128, u128)]) -> Ranges {
        all.iter().copied().collect()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(ranges(&[(5, 9), (1, 2), (3, 3), (7, 12)]), Ranges([(1, 3), (5, 12)].into()));
        assert_eq!(ranges(&[(0, u128::MAX), (4, 5)]), Ranges([(0, u128::MAX)].into()));
    }

    #[test]
    fn set_algebra_agrees_with_membership() {
        let sets = [
            ranges(&[]),
            ranges(&[(0, 9)]),
            ranges(&[(0, 2), (5, 5), (8, 12)]),
            ranges(&[(1, 1), (3, 7)]),
            ranges(&[(2, 3), (12, 12), (14, 15)]),
            ranges(&[(0, 15)]),
        ];
        for one in &sets {
            for number in 0..=15 {
                assert_eq!(one.complement(15).contains(number), !one.contains(number), "{one:?} {number}");
            }
            for other in &sets {
                let rest = one.without(other);
                let inside = |number| one.contains(number) && !other.contains(number);
                assert!((0..=16).all(|number| rest.contains(number) == inside(number)), "{one:?} {other:?} {rest:?}");
                let all = (0..=15).all(|number| one.contains(number) || !other.contains(number));
                assert_eq!(one.covers(other), all, "{one:?} {other:?}");
            }
        }
        let whole = Ranges::up_to(LAST6);
        assert_eq!(whole.without(&whole), ranges(&[]));
        assert_eq!(whole.without(&ranges(&[(5, LAST6)])), ranges(&[(0, 4)]));
        assert_eq!(whole.complement(LAST6), ranges(&[]));
    }
}
