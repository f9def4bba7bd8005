//! What a config means on this host: a pure function from the two to all that is to be written into the datapath.
//!
//! ```text
//! config::Config + HostFacts --plan()--> Plan --> datapath, sysctls
//! ```
//!
//! Parse, don't validate: a `Plan` fits the datapath's tables as it is, and is the only way into them. What the host
//! lacks for now (an interface, an address) is no error: the rest is served, `missing` and `notices` say what is not, and
//! the caller plans again when the host changes. Touches nothing and asks nobody.

mod describe;
mod firewall;
mod interfaces;
mod nat;
mod sizes;

pub use describe::Summary;
pub use firewall::{FirewallPlan, PlannedRule};

use crate::config::units::{bytes_text, size_text};
use crate::config::{Action, Config, Filtering, Firewall, Icmp, Mapping, Measure, PickUpTcp, Role, Timeouts};
use forwarder_ebpf::abi::firewall::{RuleAction, switch};
use forwarder_ebpf::abi::{Control, IfaceConfig, MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatRule, Side};
use ipnet::{Ipv4Net, Ipv6Net};
use std::ops::RangeInclusive;
use std::time::Duration;

/// What planning has to know of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// All interfaces.
    pub links: Vec<Link>,
    /// Index of the interface that the IPv4 default route leaves by.
    pub default_route_v4: Option<u32>,
    /// Index of the interface that the IPv6 default route leaves by.
    pub default_route_v6: Option<u32>,
    /// The machine's memory, bytes.
    pub memory_bytes: u64,
    /// `net.ipv4.ip_local_port_range`: first and last port of the host's own connections.
    pub local_port_range: (u16, u16),
}

/// One interface of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address; none when it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Its MTU, bytes of IP packet.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Its IPv4 addresses, the primary one first.
    pub addresses_v4: Vec<Ipv4Net>,
    /// Its IPv6 addresses, link-local ones included.
    pub addresses_v6: Vec<Ipv6Net>,
}

/// Why a config cannot be served on this host, whatever changes there. One line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too many rules.
    #[error(
        "{place}: [nat] has {rules} rules once every `from` is paired with every `to`, and at most {MAX_NAT_RULES} fit; \
         join prefixes or remove rules"
    )]
    TooManyRules {
        /// File and line.
        place: String,
        /// How many there are.
        rules: usize,
    },
    /// Too many public addresses.
    #[error(
        "{place}: [nat] has {addresses} public addresses, and at most {MAX_NAT_ADDRESSES} fit; remove some from \
         nat.source.addresses"
    )]
    TooManyAddresses {
        /// File and line.
        place: String,
        /// How many there are.
        addresses: usize,
    },
    /// Flow tables that the machine has no memory for.
    #[error(
        "{place}: {key} = \"{}\": with it the flow tables take {}, more than half of this machine's {}; {}",
        size_text((*connections).into()), bytes_text(*needed_bytes), bytes_text(*memory_bytes), sizes::remedy(*fits)
    )]
    FlowsTooLarge {
        /// File and line.
        place: String,
        /// Which key.
        key: &'static str,
        /// Its value.
        connections: u32,
        /// Memory that both tables would take, bytes.
        needed_bytes: u64,
        /// Memory of the machine, bytes.
        memory_bytes: u64,
        /// The largest value that fits, if one does.
        fits: Option<u32>,
    },
}

/// Everything that the datapath is told, and what is said about it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Interfaces to serve now.
    pub interfaces: Vec<PlannedInterface>,
    /// Interfaces to serve as soon as the host has them.
    pub missing: Vec<MissingInterface>,
    /// Source NAT.
    pub nat: NatPlan,
    /// Ports that translated flows may use.
    pub ports: RangeInclusive<u16>,
    /// Who may begin a flow.
    pub firewall: Firewall,
    /// Its rules.
    pub firewall_rules: FirewallPlan,
    /// Idle times.
    pub timeouts: Timeouts,
    /// ICMP errors of our own.
    pub icmp: Icmp,
    /// What is measured.
    pub measure: Measure,
    /// Which TCP connections begin with a packet in their middle.
    pub pick_up_tcp: PickUpTcp,
    /// Flow tables.
    pub sizes: Sizes,
    /// What was decided for the operator and what he may not expect, a plain sentence each.
    pub notices: Vec<String>,
}

/// An interface that can be served now.
#[derive(Clone, Debug)]
pub struct PlannedInterface {
    /// Its name.
    pub name: String,
    /// Its index, at most 65,535.
    pub ifindex: u32,
    /// Who is behind it.
    pub side: Side,
    /// Its slot in the datapath: its place in the config, or by name when the config names none.
    pub slot: u8,
    /// What the datapath is to know of it.
    pub config: IfaceConfig,
}

/// An interface that cannot be served now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingInterface {
    /// Its name.
    pub name: String,
    /// Who is to be behind it.
    pub role: Role,
    /// Why not, in words that complete "it cannot be served:".
    pub why: String,
}

/// Source NAT, as the datapath takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatPlan {
    /// What a flow's public address and port depend on.
    pub mapping: Mapping,
    /// Whose packets may use a mapping from outside.
    pub filtering: Filtering,
    /// First match wins; exemptions come first.
    pub rules: Vec<NatRule>,
    /// Public addresses of all rules.
    pub addresses: Vec<[u8; 4]>,
    /// Whether the host itself has one of the addresses, so that its ports are shared with the host's own sockets.
    pub host_addresses: bool,
    /// What `net.ipv4.ip_local_port_range` is to be: as it is, unless the host's own ports have to make room.
    pub local_port_range: (u16, u16),
}

/// The flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// IPv4.
    pub flows_v4: TableSize,
    /// IPv6.
    pub flows_v6: TableSize,
}

/// One flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Connections that fit.
    pub connections: u32,
    /// Memory that it takes from the start, bytes.
    pub memory_bytes: u64,
}

/// Decides what a config means on a host.
///
/// # Errors
/// When it cannot be served there and a change of the config is the only help.
pub fn plan(config: &Config, facts: &HostFacts) -> Result<Plan, PlanError> {
    let sizes = sizes::choose(config, facts.memory_bytes)?;
    let mut notices = Vec::new();
    let wanted = interfaces::choose(config, facts, &mut notices);
    let (interfaces, missing) = interfaces::find(&wanted, facts, &mut notices);
    let arms = nat::Arms::of(&wanted, &interfaces, facts);
    let firewall_rules = firewall::plan(&config.firewall, &wanted, &mut notices);
    let nat = nat::plan(config, facts, &arms, &mut notices)?;
    Ok(Plan {
        interfaces,
        missing,
        nat,
        ports: config.nat.ports.clone(),
        firewall: config.firewall.clone(),
        firewall_rules,
        timeouts: config.timeouts.clone(),
        icmp: config.icmp,
        measure: config.measure,
        pick_up_tcp: config.flows.pick_up_tcp,
        sizes,
        notices,
    })
}

impl Plan {
    /// The datapath's switches, as far as they follow from the plan, on a kernel with this many ticks a second. Epoch
    /// and bank are the caller's, and so is `loose_tcp` when `pick_up_tcp` depends on the time: it is 0 here then.
    pub fn control(&self, ticks_per_second: u32) -> Control {
        let allowed = |action| action_number(action) as u8;
        Control {
            nat_rules: self.nat.rules.len() as u32,
            port_first: *self.ports.start(),
            port_last: *self.ports.end(),
            inside_allowed: allowed(self.firewall.default.inside),
            outside_allowed: allowed(self.firewall.default.outside),
            loose_tcp: u8::from(self.pick_up_tcp == PickUpTcp::Always),
            fragment_ticks: ticks(self.timeouts.fragment, ticks_per_second),
            icmp_per_second: self.icmp.errors_per_second_per_cpu,
            ticks_per_second,
            firewall: self.switches(),
            reverse_path_strict: self.firewall_rules.reverse_path.0,
            reverse_path_loose: self.firewall_rules.reverse_path.1,
            unanswered_most: self.unanswered_most(),
            source_new_per_second: self.firewall.limits.new_per_second_per_source.unwrap_or(0),
            source_flows: self.firewall.limits.flows_per_source.unwrap_or(0),
            rule_logs_per_second: self.firewall.logs_per_second_per_cpu,
            sample_mask: self.measure.time_one_in.map_or(u32::MAX, |one_in| one_in - 1),
            ..Control::default()
        }
    }
}

impl Plan {
    /// What the firewall has to look at.
    fn switches(&self) -> u32 {
        let limits = self.firewall.limits;
        let has_limits =
            limits.unanswered_percent < 100 || limits.new_per_second_per_source.or(limits.flows_per_source).is_some();
        self.firewall_rules.switches | if has_limits { switch::LIMITS } else { 0 }
    }

    /// By family, how many flows of one side may wait for an answer; 0: any number.
    fn unanswered_most(&self) -> [u32; 2] {
        let share = u64::from(self.firewall.limits.unanswered_percent);
        let of = |size: TableSize| if share >= 100 { 0 } else { (u64::from(size.connections) * share / 100) as u32 };
        [of(self.sizes.flows_v4), of(self.sizes.flows_v6)]
    }
}

/// As the datapath calls it.
pub(crate) fn action_number(action: Action) -> RuleAction {
    match action {
        Action::Allow => RuleAction::Allow,
        Action::Deny => RuleAction::Deny,
        Action::Reject => RuleAction::Reject,
    }
}

/// Rounded up, so that nothing is forgotten early.
fn ticks(duration: Duration, ticks_per_second: u32) -> u32 {
    let ticks = (duration.as_millis() * u128::from(ticks_per_second)).div_ceil(1000);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
