//! Routes by longest prefix. Neighbours are part of a route here: it says where a packet goes, or why not.

use crate::tables::{Fate, Route};
use std::vec::Vec;

impl Route {
    /// Out by this interface to this station, packets up to `mtu` bytes.
    pub const fn forward(ifindex: u32, mac: [u8; 6], mtu: u16) -> Self {
        Self { fate: Fate::Forward, ifindex, mac, mtu }
    }

    /// Out by this interface, to a station whose link-layer address is not known.
    pub const fn without_neighbour(ifindex: u32) -> Self {
        Self { fate: Fate::NoNeighbour, ifindex, mac: [0; 6], mtu: 0 }
    }

    /// Nowhere, for this reason.
    pub const fn refusing(fate: Fate) -> Self {
        Self { fate, ifindex: 0, mac: [0; 6], mtu: 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Fib<const N: usize> {
    routes: Vec<([u8; N], u8, Route)>,
}

impl<const N: usize> Fib<N> {
    /// Adds a route, or replaces the one with this prefix.
    pub(super) fn set(&mut self, prefix: [u8; N], bits: u8, route: Route) {
        self.remove(prefix, bits);
        self.routes.push((prefix, bits, route));
        self.routes.sort_by_key(|(_, bits, _)| core::cmp::Reverse(*bits));
    }

    pub(super) fn remove(&mut self, prefix: [u8; N], bits: u8) {
        self.routes.retain(|(other, length, _)| (*other, *length) != (prefix, bits));
    }

    /// Where `address` goes; nowhere without a route.
    pub(super) fn look_up(&self, address: &[u8; N]) -> Route {
        let found = self.routes.iter().find(|(prefix, bits, _)| shared_bits(prefix, address) >= u32::from(*bits));
        found.map_or(Route::refusing(Fate::NotForwarded), |(_, _, route)| *route)
    }
}

/// How many leading bits two addresses share.
fn shared_bits<const N: usize>(one: &[u8; N], other: &[u8; N]) -> u32 {
    let mut bits = 0;
    for (a, b) in one.iter().zip(other) {
        let same = (a ^ b).leading_zeros();
        bits += same;
        if same < 8 {
            break;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let mut fib = Fib::default();
        fib.set([10, 0, 0, 0], 8, Route::refusing(Fate::Blackhole));
        fib.set([0; 4], 0, Route::refusing(Fate::Unreachable));
        fib.set([10, 1, 128, 0], 17, Route::refusing(Fate::Prohibited));
        assert_eq!(fib.look_up(&[11, 1, 128, 1]), Route::refusing(Fate::Unreachable));
        assert_eq!(fib.look_up(&[10, 1, 127, 1]), Route::refusing(Fate::Blackhole));
        assert_eq!(fib.look_up(&[10, 1, 128, 1]), Route::refusing(Fate::Prohibited));
        fib.remove([0; 4], 0);
        assert_eq!(fib.look_up(&[11, 1, 128, 1]), Route::refusing(Fate::NotForwarded));
    }
}
