//! Refused packets, as the sweeper hands them to the feed.

use crate::record::Tuple;
use forwarder_ebpf::abi::Ticks;
use forwarder_ebpf::verdict::Drop;

/// Packets that were refused and have this in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// The packet's ends.
    pub tuple: Tuple,
    /// IP protocol.
    pub protocol: u8,
    /// Number of the interface it came by.
    pub ingress: u16,
    /// Why.
    pub reason: Drop,
    /// Number of the rule that refused it, 0 for none.
    pub rule: u16,
}

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedCount {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packet.
    pub bytes: u64,
    /// As AWS counts them.
    pub tcp_flags: u8,
    /// First packet.
    pub first: Ticks,
    /// Last packet.
    pub last: Ticks,
}
