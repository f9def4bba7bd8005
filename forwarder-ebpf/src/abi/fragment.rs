//! Fragment trains: which flow the fragments without a transport header belong to.

use super::Ticks;
use super::flow::{FlowKey4, FlowKey6};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What all fragments of one IPv4 datagram share (RFC 791 §3.2), and the side they enter by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FragmentKey4 {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Identification.
    pub id: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// `Side` of the ingress interface.
    pub side: u8,
    /// Zero.
    pub zero: u32,
}

/// What all fragments of one IPv6 datagram share (RFC 8200 §4.5), and the side they enter by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FragmentKey6 {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Identification.
    pub id: [u8; 4],
    /// `Side` of the ingress interface.
    pub side: u8,
    /// Zero.
    pub zero: [u8; 3],
}

/// The flow that an IPv4 train belongs to, and when its first fragment passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FragmentOwner4 {
    /// Key of the flow entry.
    pub key: FlowKey4,
    /// When the first fragment passed.
    pub since: Ticks,
    /// Zero.
    pub zero: u32,
}

/// The flow that an IPv6 train belongs to, and when its first fragment passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FragmentOwner6 {
    /// Key of the flow entry.
    pub key: FlowKey6,
    /// When the first fragment passed.
    pub since: Ticks,
    /// Zero.
    pub zero: u32,
}
