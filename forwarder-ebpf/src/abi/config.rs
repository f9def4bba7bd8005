//! What the controller tells the datapath: interfaces, the epoch, source NAT.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Roles of an interface, as the numbers in `IfaceConfig::side` and in flow keys. 0 is "not ours".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Clients are here.
    Inside = 1,
    /// The world is here.
    Outside = 2,
    /// One interface serves both.
    Both = 3,
}

/// One interface that the datapath serves; value of `IFACES` at its ifindex.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct IfaceConfig {
    /// Link-layer address; frames to another are left to the host.
    pub mac: [u8; 6],
    /// A `Side`, or 0: not ours.
    pub side: u8,
    /// Index in the device map and in the counters, below `MAX_IFACES`.
    pub slot: u8,
    /// Primary IPv4 address, source of ICMP errors; zero: none.
    pub address4: [u8; 4],
    /// Global IPv6 address, source of ICMPv6 errors; zero: none.
    pub address6: [u8; 16],
    /// Interface MTU, bytes of IP packet.
    pub mtu: u32,
}

/// Switches and numbers that all stages read; the single value of `CONTROL`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Control {
    /// Moves whenever routes, neighbours, addresses, links or policy changed; an entry of another epoch asks again.
    pub epoch: u32,
    /// Which bank of `NAT_RULES` and `NAT_ADDRESSES` counts: 0 or 1.
    pub nat_bank: u32,
    /// Rules in that bank.
    pub nat_rules: u32,
    /// First port that source NAT may use.
    pub port_first: u16,
    /// Last port that source NAT may use.
    pub port_last: u16,
    /// New flows that enter inside and meet no rule: a `firewall::RuleAction`.
    pub inside_allowed: u8,
    /// New flows that enter outside and meet no rule: a `firewall::RuleAction`.
    pub outside_allowed: u8,
    /// TCP without a handshake seen: 1 pick it up, 0 refuse.
    pub loose_tcp: u8,
    /// Zero.
    pub zero: u8,
    /// Ticks that a fragment train lives.
    pub fragment_ticks: u32,
    /// ICMP errors that each CPU may send in one second.
    pub icmp_per_second: u32,
    /// Kernel ticks in one second (HZ).
    pub ticks_per_second: u32,
    /// One packet in this many (a power of two) has its processing time measured, less one; all ones: none.
    pub sample_mask: u32,
    /// What the firewall has to look at: bits of `firewall::switch`.
    pub firewall: u32,
    /// Interfaces, by slot, whose packets must come from where their source is reached by the same interface.
    pub reverse_path_strict: u32,
    /// Interfaces, by slot, whose packets must come from where there is a way back to.
    pub reverse_path_loose: u32,
    /// By family: flows of one side that may wait for their first answer at once; 0: any number.
    pub unanswered_most: [u32; 2],
    /// By family and side: what `Unanswered` counts and is answered no more, because it has ended.
    pub unanswered_past: [u32; 8],
    /// Flows that one source may open in a second; 0: any number.
    pub source_new_per_second: u32,
    /// Flows that one source may have at once; 0: any number.
    pub source_flows: u32,
    /// What rules decide that each CPU may have logged in one second.
    pub rule_logs_per_second: u32,
}

/// What a source NAT rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NatAction {
    /// Leave the flow as it is.
    Exempt = 0,
    /// Translate the source to an address of the rule's.
    Translate = 1,
}

/// One source NAT rule: from a prefix towards a prefix. First match wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct NatRule {
    /// Source prefix.
    pub from: [u8; 4],
    /// Its mask.
    pub from_mask: [u8; 4],
    /// Destination prefix.
    pub to: [u8; 4],
    /// Its mask.
    pub to_mask: [u8; 4],
    /// First of its addresses in the same bank of `NAT_ADDRESSES`.
    pub first_address: u16,
    /// How many; one inside host keeps one of them.
    pub addresses: u16,
    /// A `NatAction`.
    pub action: u32,
}

const _: () = assert!(size_of::<IfaceConfig>() == 32);
const _: () = assert!(size_of::<Control>() == 100);
const _: () = assert!(size_of::<NatRule>() == 24);
