//! What the core asks of its surroundings: maps, routes, random numbers. Two bodies: `bpf` and `sim`.

use crate::abi::firewall::{Line, RuleEvent, SourceCell, Unanswered};
use crate::abi::{Birth, Control, FlowEntry, FlowKey4, FlowKey6, Handshake, IfaceConfig, NatRule, Ticks};
use crate::abi::{FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6};
use crate::verdict::Drop;
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;
use core::ops::{Deref, DerefMut};

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is taken.
    Exists,
    /// No room.
    Full,
    /// Another CPU is just doing the same or took the place: ask again.
    Busy,
}

/// The flow table of one address family.
pub trait FlowTable<K> {
    /// The entry with this key.
    fn flow(&self, key: &K) -> Option<&FlowEntry>;

    /// The same, but it may miss one in a crowded place.
    fn flow_nearby(&self, key: &K) -> Option<&FlowEntry>;

    /// A flow with this key is likely to be inserted soon.
    fn expect_flow(&self, key: &K);

    /// The key's hash under the table's secret; 0 where the table has none yet.
    fn hash(&self, key: &K) -> u64;

    /// How the entry with this key came to be.
    fn birth(&self, key: &K) -> Option<&Birth>;

    /// Inserts unless the key is taken; atomic over all CPUs.
    ///
    /// # Errors
    /// See `flow_table::insert`.
    fn insert_flow(&self, key: &K, entry: &FlowEntry, birth: &Birth) -> Result<(), Refused>;

    /// Removes the entry, if it is there. Who has found it may still use it.
    fn remove_flow(&self, key: &K);
}

/// The table of fragment trains of one address family.
pub trait FragmentTable<K, O> {
    /// Remembers whom a train belongs to.
    fn remember(&self, key: &K, owner: &O);

    /// Whom the train belongs to.
    fn owner(&self, key: &K) -> Option<O>;
}

/// What the kernel's FIB is asked about: a packet as it would be routed, after destination and before source NAT.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery<'a, A> {
    /// Ingress interface index.
    pub ingress: u32,
    /// Source address.
    pub source: &'a A,
    /// Destination address.
    pub destination: &'a A,
    /// IP protocol.
    pub protocol: u8,
    /// Type of service or traffic class.
    pub tos: u8,
}

/// What the FIB says (`bpf_fib_lookup`, linux/bpf.h). Fields that a fate does not have are still written, see `Verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What becomes of the packet.
    pub fate: Fate,
    /// Egress interface index, where it is to leave.
    pub ifindex: u32,
    /// Link-layer address of the next hop, where it is known.
    pub mac: [u8; 6],
    /// Largest IP packet that the route takes, bytes.
    pub mtu: u16,
}

/// What the FIB wants done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, zerocopy::TryFromBytes)]
#[repr(u8)]
pub enum Fate {
    /// It leaves.
    Forward,
    /// It leaves, but the next hop's link-layer address is not known.
    NoNeighbour,
    /// The host's own, or no route at all: the kernel does not tell the two apart.
    NotForwarded,
    /// A blackhole route.
    Blackhole,
    /// An unreachable route.
    Unreachable,
    /// A prohibit route.
    Prohibited,
    /// Forwarding is switched off for the ingress interface.
    Disabled,
}

/// What the `Answer` stages are to send, and what the frame they consume counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The second word of the ICMP header: an MTU, or zero.
    pub info: u32,
    /// What the frame is counted as.
    pub reason: Drop,
}

/// A compiled firewall policy, see `abi::firewall`.
pub trait Lines {
    /// The line with this number.
    fn line(&self, number: u32) -> Option<&Line>;
}

/// What the stage `Firewall` asks the stage `Match`: five numbers, as in `abi::firewall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Asked {
    /// Source address, upper half first; an IPv4 address is the lower half.
    pub source: [u64; 2],
    /// Destination address.
    pub destination: [u64; 2],
    /// Protocol and destination port.
    pub service: u64,
    /// TCP flags and source port.
    pub origin: u64,
    /// Interfaces.
    pub way: u64,
    /// IP packet, bytes.
    pub bytes: u32,
    /// What is asked for: one of the constants below.
    pub purpose: u8,
    /// Zero.
    pub zero: [u8; 3],
}

impl Asked {
    /// A packet wants to begin a flow.
    pub const BEGINS: u8 = 1;
    /// A flow wants to go on.
    pub const GOES_ON: u8 = 2;
    /// A packet is for the host.
    pub const FOR_HOST: u8 = 3;
    /// A packet leaves by an interface that is not served.
    pub const UNSERVED: u8 = 4;
    /// A responder's packet wants to begin its flow anew, the other way round.
    pub const TURNS: u8 = 5;
}

/// What the stages `Firewall` and `Match` hand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Judged {
    /// What was allowed, or turned out: bits of the constants below. 0: nobody was asked.
    pub stands: u8,
    /// What the rule says: a `RuleAction`.
    pub action: u8,
    /// Counter of the rule that decided.
    pub rule: u16,
    /// Why it is refused, if it is.
    pub reason: Drop,
    /// The way out that it was judged by.
    pub route: Route,
}

impl Judged {
    /// The packet may begin a flow.
    pub const BEGINS: u8 = 1;
    /// The packet's flow may go on.
    pub const GOES_ON: u8 = 2;
    /// The packet may turn its closing flow round.
    pub const TURNS: u8 = 4;
    /// The port that its flow was to have seemed free and was taken.
    pub const PORT_TAKEN: u8 = 8;

    /// Nobody was asked.
    pub const NOT: Self = Self {
        stands: 0,
        action: 0,
        rule: 0,
        reason: Drop::Policy,
        route: Route { fate: Fate::NotForwarded, ifindex: 0, mac: [0; 6], mtu: 0 },
    };
}

/// Everything beside the frame.
pub trait Tables:
    FlowTable<FlowKey4>
    + FlowTable<FlowKey6>
    + FragmentTable<FragmentKey4, FragmentOwner4>
    + FragmentTable<FragmentKey6, FragmentOwner6>
{
    /// Memory for one parsed IPv4 packet.
    type Packet4: DerefMut<Target = Packet4>;
    /// Memory for one parsed IPv6 packet.
    type Packet6: DerefMut<Target = Packet6>;

    /// The firewall's policy.
    type Policy: Lines;
    /// What it is asked.
    type Asked: Deref<Target = Asked>;

    /// Memory for the packet in work, whatever is in it. What the verifier reads from there is any number, and not one of
    /// the many that the parser may have put: so it follows what comes behind once, and not once for each. One at a time.
    fn packet4(&self) -> Option<Self::Packet4>;

    /// The same for IPv6, whose addresses are more than registers and the BPF stack hold.
    fn packet6(&self) -> Option<Self::Packet6>;

    /// The configuration of an interface by index; `side` 0 when it is not ours.
    fn iface(&self, ifindex: u32) -> Option<&IfaceConfig>;

    /// The switches. `None` only when the controller never wrote them.
    fn control(&self) -> Option<&Control>;

    /// Source NAT rule at `index` of both banks.
    fn nat_rule(&self, index: u32) -> Option<&NatRule>;

    /// Public address at `index` of both banks.
    fn nat_address(&self, index: u32) -> Option<[u8; 4]>;

    /// 64 ports from `64 * word` on that source NAT must leave to the host, a bit each.
    fn host_ports(&self, word: u32) -> u64;

    /// The kernel's answer for an IPv4 packet.
    fn route4(&self, query: &RouteQuery<'_, [u8; 4]>) -> Route;

    /// The kernel's answer for an IPv6 packet.
    fn route6(&self, query: &RouteQuery<'_, [u8; 16]>) -> Route;

    /// Gives a copy of the untouched frame to the controller, which finds the neighbour that the route just asked for
    /// lacks, and sends the frame again. False when that is not possible.
    fn hold(&self, ingress: u32) -> bool;

    /// A pseudo-random number.
    fn random(&self) -> u32;

    /// The cell of a handshake.
    fn handshake(&self, index: u32) -> Option<&Handshake>;

    /// A precise clock, microseconds, which comes round after 71 minutes. To read it costs: for packets that are few.
    fn clock_us(&self) -> u32;

    /// Hands an answer to the next stage.
    fn set_answer(&self, answer: Answer);

    /// The firewall's policy, if there is one.
    fn policy(&self) -> Option<Self::Policy>;

    /// Flows that wait for their first answer, by family (times 4) and side.
    fn unanswered(&self, group: u32) -> Option<&Unanswered>;

    /// A cell that sources are counted in.
    fn source_cell(&self, cell: u32) -> Option<&SourceCell>;

    /// How many flows of a cell have ended.
    fn source_past(&self, cell: u32) -> u32;

    /// Hands on a question.
    fn set_asked(&self, asked: &Asked);

    /// The question handed on by the stage before.
    fn asked(&self) -> Option<Self::Asked>;

    /// Counts a packet of `bytes` that a rule decided about.
    fn count_rule(&self, counter: u16, bytes: u32, now: Ticks);

    /// Has the controller log what a rule decided, unless that is too much.
    fn log_rule(&self, event: &RuleEvent, now: Ticks, control: &Control);

    /// Hands on what the firewall decided.
    fn set_judged(&self, judged: Judged);

    /// What the firewall stage before has decided.
    fn judged(&self) -> Judged;

    /// The answer handed on by the stage before.
    fn answer(&self) -> Option<Answer>;

    /// Takes one ICMP error from this CPU's budget of `per_second`; false when it is used up.
    fn take_icmp_token(&self, now: Ticks, control: &Control) -> bool;
}
