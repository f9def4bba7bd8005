//! What the controller asks the kernel's FIB through the datapath: question and answer of the program `fib`, which stand in
//! its frame behind `tend::HEADER`. An IPv4 address is the first four bytes of a place for one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A packet whose route is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FibQuestion {
    /// Where it comes from.
    pub source: [u8; 16],
    /// Where it goes.
    pub destination: [u8; 16],
    /// 4 or 6.
    pub family: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 2],
}

/// What the FIB says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FibAnswer {
    /// Who gets it next: the destination itself, or a gateway.
    pub next_hop: [u8; 16],
    /// 4 or 6, of the next hop.
    pub family: u8,
    /// A `Fate`.
    pub fate: u8,
    /// Largest IP packet, bytes, in the machine's order.
    pub mtu: [u8; 2],
    /// Egress interface index, in the machine's order.
    pub ifindex: [u8; 4],
    /// Link-layer address of the next hop, where it is known.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<FibQuestion>() == 36);
const _: () = assert!(size_of::<FibAnswer>() == 32);
