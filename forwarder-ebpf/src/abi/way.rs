//! A way that the controller asks the kernel's FIB for, as the datapath would: question and answer of the program `way`,
//! which stand in its frame behind `tend::HEADER`. An IPv4 address is the first four bytes of a place for one.

use crate::tables::{Fate, Route};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A packet whose way is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WayQuestion {
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
pub struct WayAnswer {
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

impl WayAnswer {
    /// The route.
    pub fn route(&self) -> Route {
        let fate = Fate::ALL.into_iter().find(|fate| *fate as u8 == self.fate).unwrap_or(Fate::NotForwarded);
        Route { fate, ifindex: u32::from_ne_bytes(self.ifindex), mac: self.mac, mtu: u16::from_ne_bytes(self.mtu) }
    }
}

const _: () = assert!(size_of::<WayQuestion>() == 36);
const _: () = assert!(size_of::<WayAnswer>() == 32);
