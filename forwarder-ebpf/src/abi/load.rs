//! What the benchmark's generator, sink and bare redirect share with `forwarder-bench`. No part of the appliance.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Begins the payload of every generated packet.
pub const LOAD_MAGIC: u64 = 0x666f_7277_6172_6421;

/// Flows that share a destination address: each has a source port of its own, from `LOAD_FIRST_PORT` on.
pub const LOAD_FLOWS_PER_DESTINATION: u32 = 50_000;
/// Source port of every destination's first flow.
pub const LOAD_FIRST_PORT: u16 = 2_048;

/// What is generated and what has to arrive; the single value of `LOAD`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadConfig {
    /// Flows, visited in a pseudo-random order, each once before any comes again.
    pub flows: u32,
    /// Source address.
    pub source: [u8; 4],
    /// First destination address; the last byte counts up.
    pub destination: [u8; 4],
    /// Source address that has to arrive.
    pub expected: [u8; 4],
    /// Link-layer address that generated frames are sent to.
    pub to: [u8; 6],
    /// Link-layer address that they are sent from.
    pub from: [u8; 6],
    /// Link-layer address that the bare redirect sends to.
    pub bare_to: [u8; 6],
    /// Link-layer address that the bare redirect sends from.
    pub bare_from: [u8; 6],
}

/// Frames that arrived, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadCounter {
    /// Frames with the magic.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them with another source address than expected.
    pub wrong: u64,
}

const _: () = assert!(size_of::<LoadConfig>() == 40);
const _: () = assert!(size_of::<LoadCounter>() == 24);
