//! How a frame ends. One list gives number, name and sentence of every reason; counters, `status`, metrics and tests use it.

/// Number of the first pass reason among the outcomes; below are the egress slots.
pub const FIRST_PASS: u32 = 32;
/// Number of the first drop reason among the outcomes.
pub const FIRST_DROP: u32 = 64;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident from $first:expr; $($variant:ident $label:literal $text:literal)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $text] $variant),* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number of this outcome in the counters.
            #[inline(always)]
            pub const fn outcome(self) -> u32 {
                $first + self as u32
            }

            /// The name in metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

reasons! {
    /// Why a frame was left to the host, untouched.
    Pass from FIRST_PASS;
    NotIp "not_ip" "neither IPv4 nor IPv6: ARP, VLAN and the like"
    NotToUs "not_to_us" "the frame is addressed to another station or to a group"
    Multicast "multicast" "multicast or broadcast"
    Host "host" "addressed to the host itself, or nowhere that it routes to"
    LinkLocal "link_local" "link-local IPv6, neighbour discovery"
    Unserved "unserved" "its way out is an interface that forwarder does not serve"
    Held "held" "with the controller until the next hop's link-layer address is known, then sent again and counted anew"
}

reasons! {
    /// Why a frame went no further.
    Drop from FIRST_DROP;
    Malformed "malformed" "headers that do not fit the packet or contradict each other"
    Martian "martian" "an address that must not be on the wire, such as 127.0.0.1"
    Policy "policy" "a firewall rule, or the default for the side it entered by, says deny"
    NoFlow "no_flow" "belongs to no known flow and may not begin one"
    TtlExceeded "ttl_exceeded" "TTL or hop limit used up; answered with time exceeded"
    TooBig "too_big" "larger than the way out takes and not to be fragmented; answered with the MTU"
    FragmentationNeeded "fragmentation_needed" "larger than the way out takes; fragmenting is left to the sender, answered with the MTU"
    FragmentUndecided "fragment_undecided" "a fragment that came before the first one of its packet, or too late"
    RouteBlackhole "route_blackhole" "a blackhole route"
    RouteUnreachable "route_unreachable" "no route, or an unreachable route; answered with destination unreachable"
    RouteProhibited "route_prohibited" "a prohibit route; answered with administratively prohibited"
    ForwardingDisabled "forwarding_disabled" "forwarding is off in the kernel for this interface"
    NeighbourUnknown "neighbour_unknown" "the next hop's link-layer address is not known yet"
    NatExhausted "nat_exhausted" "no free port towards this remote on the public address; answered with administratively prohibited"
    TableFull "table_full" "the flow table is full; answered with administratively prohibited"
    IcmpUnrelated "icmp_unrelated" "an ICMP error about no known flow"
    IcmpUnsupported "icmp_unsupported" "an ICMP type that is not forwarded"
    ExtensionHeaders "extension_headers" "more IPv6 extension headers than are followed"
    Internal "internal" "a program of the datapath is missing; please report this"
    Rejected "rejected" "a firewall rule or default says reject; answered with a TCP reset or administratively prohibited"
    HostPolicy "host_policy" "a firewall rule for the host says deny"
    Bogon "bogon" "its source is not one that the world outside has"
    ReversePath "reverse_path" "the way back to its source is not the interface that it came by"
    UnansweredLimit "unanswered_limit" "too many flows that entered by this side wait for their first answer"
    SourceRate "source_rate" "its source opens more flows a second than it may"
    SourceFlows "source_flows" "its source has more flows than it may"
    TcpFlags "tcp_flags" "TCP flags that no connection needs, such as SYN with FIN, or none at all"
    ResetWindow "reset_window" "a TCP reset whose sequence number is far from all that its sender has sent"
}

const _: () = assert!(Pass::ALL.len() as u32 <= FIRST_DROP - FIRST_PASS);
const _: () = assert!(FIRST_DROP + Drop::ALL.len() as u32 <= crate::abi::OUTCOMES);

macro_rules! stages {
    ($($variant:ident $program:literal $text:literal)*) => {
        /// Where a frame is handed over to when the current stage does not decide.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Stage { $(#[doc = $text] $variant),* }

        impl Stage {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name of its BPF program.
            pub const fn program(self) -> &'static str {
                match self { $(Self::$variant => $program),* }
            }
        }
    };
}

stages! {
    Flow4 "flow4" "IPv4 off the fast path: change of state, new epoch, options, fragments."
    Flow6 "flow6" "IPv6 off the fast path."
    New4 "new4" "An IPv4 packet without a flow."
    New6 "new6" "An IPv6 packet without a flow."
    Related4 "related4" "An ICMP error."
    Related6 "related6" "An ICMPv6 error."
    Answer4 "answer4" "The frame becomes an ICMP error to its sender."
    Answer6 "answer6" "The frame becomes an ICMPv6 error to its sender."
    Firewall4 "firewall4" "The rules are asked about an IPv4 packet."
    Firewall6 "firewall6" "The rules are asked about an IPv6 packet."
    Match4 "match4" "The rule for what was asked is found."
    Match6 "match6" "The rule for what was asked is found, IPv6."
    Refuse4 "refuse4" "An IPv4 packet, and the flow that it has, end by a rule."
    Refuse6 "refuse6" "An IPv6 packet, and the flow that it has, end by a rule."
    Reset4 "reset4" "The frame becomes a TCP reset to its sender."
    Reset6 "reset6" "The frame becomes a TCP reset to its sender, IPv6."
    Refused4 "refused4" "An IPv4 packet that was refused is counted for flow logs; the kernel's body alone has it."
    Refused6 "refused6" "The same for IPv6."
}

/// How many stages there are.
pub const STAGES: u32 = Stage::ALL.len() as u32;

/// What becomes of a frame.
///
/// Every variant has exactly one byte of payload: a byte that only some have is undefined in the others, and the compiler
/// then moves registers that were never written, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Leaves by the interface with this slot.
    Forward(u8),
    /// The host gets it; but `Pass::Held` ends here for now, because the controller has a copy and sends it again.
    Pass(Pass),
    /// It ends here.
    Drop(Drop),
    /// It ends here for this reason, and the frame goes back as an ICMP error. Counted as the drop.
    Answered(Drop),
    /// The next stage decides.
    Next(Stage),
}

impl Verdict {
    /// Which outcome the frame counts as. `None`: it is not decided yet.
    #[inline(always)]
    pub fn outcome(self) -> Option<u32> {
        match self {
            Self::Forward(slot) => Some(u32::from(slot) & (FIRST_PASS - 1)),
            Self::Pass(why) => Some(why.outcome()),
            Self::Drop(why) | Self::Answered(why) => Some(why.outcome()),
            Self::Next(_) => None,
        }
    }
}
