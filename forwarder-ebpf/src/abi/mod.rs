//! All that crosses the line between kernel and user space: map names, keys, values, limits and counter numbers.
//!
//! Layout rules: `repr(C)`, integers and byte arrays, explicit zeroed padding. `zerocopy`'s `IntoBytes` is the compile-time
//! proof that there is none hidden; sizes are asserted beside the types. Addresses and ports are byte arrays in network
//! order; all other integers are in the byte order of the machine.

mod config;
mod counters;
mod entry;
mod fib;
pub mod firewall;
mod flow;
mod fragment;
mod handshake;
mod load;
mod packets;
mod refused;
mod shared;
mod slot;

pub use config::{Control, IfaceConfig, NatAction, NatRule, Side};
pub use counters::{Counter, DWELL_BUCKETS, OUTCOMES, counter_index, dwell_bucket, dwell_bucket_ns};
pub use entry::{Birth, FlowEntry, NextHop, status};
pub use fib::{FibAnswer, FibQuestion};
pub use flow::{FlowKey, FlowKey4, FlowKey6};
pub use fragment::{FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6};
pub use handshake::{HANDSHAKES, Handshake, Place, RoundTrips, phase};
pub use load::{
    LOAD_ACCESSES, LOAD_CLIENTS6, LOAD_ECHO_PORT, LOAD_FIRST_PORT, LOAD_MAGIC, LOAD_PORT_BITS, LOAD_SERVER_PORT,
    LOAD_SERVERS6, LoadArrived, LoadConfig, LoadStation, LoadStream, LoadWalk, load_port,
};
pub use packets::Packets;
pub use refused::{MAX_REFUSED, Refused, RefusedBy, RefusedKey, Refusing, logged_flags};
pub use shared::{SharedU16, SharedU32, SharedU64};
pub use slot::{Family, Shape, Slot, Used, tend};

/// Time in the datapath: the low 32 bits of the kernel's jiffies. The unit is 1/HZ s; user space measures HZ.
pub type Ticks = u32;

/// Programs that may be in the middle of a frame on one CPU; memory that one leaves for the next is there as often.
pub const LEVELS: u32 = 2;

/// Interfaces that one instance can serve. Slot 0 is the first; a slot is the index in the device map.
pub const MAX_IFACES: u32 = 32;

/// Source NAT rules of one generation, exemptions included.
pub const MAX_NAT_RULES: u32 = 128;

/// Public addresses of one generation, over all rules.
pub const MAX_NAT_ADDRESSES: u32 = 256;

/// Ports tried for one new connection before it is refused. At 95 % use of one remote's ports 96 % still find one.
pub const PORT_ATTEMPTS: u32 = 64;

/// Fragment trains that can be followed at once, per family (least recently used go first).
pub const MAX_FRAGMENT_TRAINS: u32 = 16_384;

/// A frame that waits for its next hop's link-layer address, as the controller reads it from `HELD`.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C, align(4))]
pub struct HeldFrame {
    /// Interface that it came by.
    pub ingress: u32,
    /// Bytes of `frame` that count.
    pub length: u32,
    /// Next hop's address in network order: IPv4 in the first word, or IPv6.
    pub next_hop: [u32; 4],
    /// Interface that it is to leave by.
    pub egress: u32,
    /// 4 or 6: the family of `next_hop`.
    pub family: u32,
    /// The frame as it came.
    pub frame: [u8; HELD_FRAME_BYTES],
}

/// Longest frame that can wait for a neighbour; longer ones are dropped.
pub const HELD_FRAME_BYTES: usize = 2048;

/// Bytes of the ring of frames that wait.
pub const HELD_RING_BYTES: u32 = 1 << 20;

/// Map names, as they stand in the BPF object and among the pins.
pub mod names {
    /// `Slot<FlowKey4>` by index.
    pub const FLOWS4: &str = "FLOWS4";
    /// `Slot<FlowKey6>` by index.
    pub const FLOWS6: &str = "FLOWS6";
    /// `Birth` by index of FLOWS4.
    pub const BIRTHS4: &str = "BIRTHS4";
    /// `Birth` by index of FLOWS6.
    pub const BIRTHS6: &str = "BIRTHS6";
    /// Which blocks of FLOWS4 are in use, 64 a word.
    pub const BLOCKS4: &str = "BLOCKS4";
    /// The same of FLOWS6.
    pub const BLOCKS6: &str = "BLOCKS6";
    /// `Family` to `Shape`.
    pub const SHAPES: &str = "SHAPES";
    /// `Family` to `Used`.
    pub const USED: &str = "USED";
    /// `FragmentKey4` to `FragmentOwner4`.
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    /// `FragmentKey6` to `FragmentOwner6`.
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    /// ifindex to `IfaceConfig`.
    pub const IFACES: &str = "IFACES";
    /// The one `Control`.
    pub const CONTROL: &str = "CONTROL";
    /// Two banks of `NatRule`.
    pub const NAT_RULES: &str = "NAT_RULES";
    /// Two banks of public addresses.
    pub const NAT_ADDRESSES: &str = "NAT_ADDRESSES";
    /// One bit per port that source NAT must leave to the host, 1,024 words of 64.
    pub const HOST_PORTS: &str = "HOST_PORTS";
    /// Slot to egress device.
    pub const DEVICES: &str = "DEVICES";
    /// Stage number to program.
    pub const STAGES: &str = "STAGES";
    /// Per CPU, slot and outcome: `Counter`.
    pub const COUNTERS: &str = "COUNTERS";
    /// Per CPU: histogram of sampled processing times.
    pub const DWELL: &str = "DWELL";
    /// Per CPU: what one stage hands to the next, the ICMP token bucket.
    pub const SCRATCH: &str = "SCRATCH";
    /// The one `Refusing`.
    pub const REFUSING: &str = "REFUSING";
    /// `FlowKey4` with a `RefusedBy` to `Refused`.
    pub const REFUSED4: &str = "REFUSED4";
    /// `FlowKey6` with a `RefusedBy` to `Refused`.
    pub const REFUSED6: &str = "REFUSED6";
    /// Per CPU: refused packets that there was no room to count by their ends.
    pub const REFUSED_LOST: &str = "REFUSED_LOST";
    /// Cell to `Handshake`.
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// Frames that wait for a neighbour, towards the controller.
    pub const HELD: &str = "HELD";
    /// The one compiled policy: a map of `firewall::Line` in a map, so that it is exchanged at once.
    pub const FIREWALL: &str = "FIREWALL";
    /// Family and side to `firewall::Unanswered`.
    pub const UNANSWERED: &str = "UNANSWERED";
    /// Cell to `firewall::SourceCell`.
    pub const SOURCES: &str = "SOURCES";
    /// Cell to how many of its flows have ended.
    pub const SOURCES_PAST: &str = "SOURCES_PAST";
    /// What rules decided that are to be logged, towards the controller: `firewall::RuleEvent`.
    pub const RULE_LOG: &str = "RULE_LOG";
    /// Per CPU: `firewall::RuleLogBudget`.
    pub const RULE_LOG_BUDGET: &str = "RULE_LOG_BUDGET";
    /// Per CPU and rule: `firewall::RuleCounter`.
    pub const FIREWALL_COUNTERS: &str = "FIREWALL_COUNTERS";
}
