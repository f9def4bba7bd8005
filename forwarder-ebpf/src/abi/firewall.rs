//! A compiled firewall policy as it lies in memory, the same bytes in the kernel's map and on the host.
//!
//! ```text
//! line 0            header: where everything below begins
//! trees             addresses of both families, services, origins, ways: intervals of keys, each with its class
//! vectors           per class one bit for each rule that the class meets, and above it one bit for 64 of those
//! rules             action, reason, counter
//! ```
//!
//! A policy is an array of 64-byte lines. A rule looks at five things, each of which is a number: source address,
//! destination address, service (protocol with destination port, or ICMP type and code), origin (TCP flags with source
//! port) and way (interface in, interface out, translated). The compiler cuts the numbers of each into intervals that no
//! rule tells apart; a packet's five classes name five bit vectors, and the lowest bit that all have is the first rule that
//! matches. So the cost does not depend on how many prefixes a set has, and hardly on how many rules there are.
//!
//! # Trees
//! Eight keys a line, level by level from the root; key `i` of a node is the first of its child `i`. A tree of `n` intervals
//! and depth `d` has `ceil(n / 8^(d - l))` nodes on level `l`; the classes stand behind the last level. Of an IPv6 address
//! the tree holds the upper half; where the lower half matters the class is another tree.

use super::{SharedU32, SharedU64, Ticks};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of a line.
pub const LINE_WORDS: usize = 8;

/// One line of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Line {
    /// Its words.
    pub words: [u64; LINE_WORDS],
}

/// Rules that one policy can have.
pub const MAX_RULES: u32 = SUMMARIES * 64 * 64;
/// Summary words of a vector: a bit for each of its words.
pub const SUMMARIES: u32 = 4;
/// Levels of a tree at most: 16 million intervals.
pub const MAX_DEPTH: u32 = 8;
/// Rules that can be counted at once, old and new ones together while a policy changes.
pub const MAX_RULE_COUNTERS: u32 = 1 << 15;

/// Words of the header.
pub mod header {
    /// `shape`: rules, groups of 4,096 rules.
    pub const SHAPE: usize = 0;
    /// Tree of IPv4 addresses.
    pub const ADDRESSES4: usize = 1;
    /// Tree of the upper halves of IPv6 addresses.
    pub const ADDRESSES6: usize = 2;
    /// Tree of services.
    pub const SERVICES: usize = 3;
    /// Tree of origins.
    pub const ORIGINS: usize = 4;
    /// Tree of ways.
    pub const WAYS: usize = 5;
    /// First line of the vectors, and lines of each in the upper half.
    pub const VECTORS: usize = 6;
    /// First line of the rules.
    pub const RULES: usize = 7;
}

/// A tree in one word: first line, intervals, depth.
pub mod tree {
    /// Where the intervals stand.
    pub const COUNT_SHIFT: u32 = 32;
    /// Intervals at most, less one.
    pub const COUNT_MASK: u32 = (1 << 24) - 1;
    /// Where the depth stands.
    pub const DEPTH_SHIFT: u32 = 56;
    /// What the depth can be.
    pub const DEPTH_MASK: u32 = 15;
    /// Tells a tree of lower halves from a pair of classes.
    pub const IS_TREE: u64 = 1 << 63;

    /// The word.
    pub const fn pack(first: u32, count: u32, depth: u32) -> u64 {
        first as u64 | (count as u64) << COUNT_SHIFT | (depth as u64) << DEPTH_SHIFT
    }
}

/// Largest number of a service.
pub const LAST_SERVICE: u64 = 0xff_ffff;
/// Largest number of an origin.
pub const LAST_ORIGIN: u64 = 0x3f_ffff;
/// Largest number of a way.
pub const LAST_WAY: u64 = 0x1fff;

/// Number of a service: protocol and destination port, or ICMP type and code.
#[inline(always)]
pub const fn service_key(protocol: u8, detail: u16) -> u64 {
    (protocol as u64) << 16 | detail as u64
}

/// Number of an origin: TCP flags, without those of ECN, and source port.
#[inline(always)]
pub const fn origin_key(flags: u8, port: u16) -> u64 {
    ((flags & 0x3f) as u64) << 16 | port as u64
}

/// `out` of a packet that leaves by an interface that is not served, or by none.
pub const OUT_UNSERVED: u8 = 62;
/// `out` of a packet for the host itself.
pub const OUT_HOST: u8 = 63;

/// The slot that a way enters by.
#[inline(always)]
pub const fn way_in(way: u64) -> u8 {
    (way >> 8) as u8 & 31
}

/// The slot that a way leaves by, or `OUT_*`.
#[inline(always)]
pub const fn way_out(way: u64) -> u8 {
    (way >> 1) as u8 & 63
}

/// Number of a way: slot and side that it enters by, slot that it leaves by (or `OUT_*`), translated or not.
#[inline(always)]
pub const fn way_key(slot: u8, from_outside: bool, out: u8, translated: bool) -> u64 {
    (slot as u64) << 8 | (from_outside as u64) << 7 | (out as u64) << 1 | translated as u64
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RuleAction {
    /// It ends here.
    Deny = 0,
    /// It goes on.
    Allow = 1,
    /// It ends here, and its sender is told.
    Reject = 2,
}

/// A rule in one word.
pub mod rule {
    /// Low byte: a `RuleAction`.
    pub const ACTION_MASK: u64 = 0xff;
    /// To be logged.
    pub const LOG: u64 = 1 << 8;
    /// Not the operator's rule but the check for addresses that must not come from outside; it has its own reason.
    pub const BOGON: u64 = 1 << 9;
    /// Where its number among the counters stands.
    pub const COUNTER_SHIFT: u32 = 16;
}

/// Bits of `Control::firewall`.
pub mod switch {
    /// There are rules: `FIREWALL` has a policy.
    pub const RULES: u32 = 1;
    /// Some of them are about packets for the host.
    pub const HOST_RULES: u32 = 1 << 1;
    /// Some of them ask whether a flow is translated.
    pub const TRANSLATED: u32 = 1 << 2;
    /// Some interface checks the way back to the source.
    pub const REVERSE_PATH: u32 = 1 << 3;
    /// There are limits for new flows.
    pub const LIMITS: u32 = 1 << 4;
    /// Any of those that the stage `Firewall` is for.
    pub const ASKS: u32 = RULES | HOST_RULES | REVERSE_PATH;
}

/// Counter of flows that enter inside and meet no rule.
pub const COUNTER_INSIDE: u16 = 0;
/// Counter of flows that enter outside and meet no rule.
pub const COUNTER_OUTSIDE: u16 = 1;

/// What a rule has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RuleCounter {
    /// Flows, and packets that became none.
    pub hits: u64,
    /// Bytes of these first packets: IP total length.
    pub bytes: u64,
    /// Ticks at the last of them; 0 when there was none.
    pub last_hit: u32,
    /// Zero.
    pub zero: u32,
}

/// Something that a rule with `log = true` decided, as the controller reads it from `RULE_LOG`. Addresses and numbers are
/// those that the rule saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RuleEvent {
    /// Source address, upper half first; an IPv4 address is the lower half.
    pub source: [u64; 2],
    /// Destination address.
    pub destination: [u64; 2],
    /// See `service_key`.
    pub service: u64,
    /// See `origin_key`.
    pub origin: u64,
    /// See `way_key`.
    pub way: u64,
    /// IP packet, bytes.
    pub bytes: u32,
    /// Counter of the rule.
    pub counter: u16,
    /// What it says: a `RuleAction`.
    pub action: u8,
    /// 4 or 6.
    pub family: u8,
}

/// What one CPU may still log, and what it did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RuleLogBudget {
    /// Events that were suppressed: beyond the budget, or because the ring was full.
    pub suppressed: u64,
    /// When the current second began, ticks.
    pub since: u32,
    /// Events that may still be logged in it.
    pub left: u32,
}

impl RuleLogBudget {
    /// Takes one event from a budget of `per_second`; false when it is used up, and counted as suppressed.
    #[inline(always)]
    pub fn take(&mut self, now: Ticks, per_second: u32, ticks_per_second: u32) -> bool {
        if now.wrapping_sub(self.since) >= ticks_per_second || self.left > per_second {
            self.since = now;
            self.left = per_second;
        }
        if self.left == 0 {
            self.suppressed += 1;
            return false;
        }
        self.left -= 1;
        true
    }
}

/// Bytes of the ring of rule events: some 3,000.
pub const RULE_LOG_BYTES: u32 = 1 << 18;

/// Flows of one side that have not been answered yet are `opened - replied`, less what user space knows to be past.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Unanswered {
    /// Flows that were opened.
    pub opened: SharedU64,
    /// Of them, those that have been answered.
    pub replied: SharedU64,
}

/// Cells that sources are counted in.
pub const SOURCE_CELLS: u32 = 1 << 15;

/// The two cells of a source: an IPv4 address, or the upper half of an IPv6 one.
#[inline(always)]
pub const fn source_cells(source: u64) -> [u32; 2] {
    // Multiplicative hashing: the upper bits of a product depend on all of the source.
    let one = source.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let other = (source ^ source >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
    [(one >> 49) as u32, (other >> 49) as u32]
}

/// What one cell of sources has opened. A source has two cells, chosen by two hashes; the lower figure of both counts.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct SourceCell {
    /// Flows opened since the datapath was loaded.
    pub opened: SharedU64,
    /// Ticks when the second began that `in_second` counts.
    pub second: SharedU32,
    /// Flows opened in that second.
    pub in_second: SharedU32,
}

const _: () = assert!(size_of::<Line>() == 64);
const _: () = assert!(size_of::<RuleCounter>() == 24);
const _: () = assert!(size_of::<RuleEvent>() == 64);
const _: () = assert!(SOURCE_CELLS == 1 << (64 - 49));
const _: () = assert!(MAX_RULES == 16_384);
const _: () = assert!(super::MAX_IFACES <= OUT_UNSERVED as u32);
