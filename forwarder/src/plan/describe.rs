//! A plan for people and for programs, `forwarder check` and `forwarder check --json`, from the same words.

use super::{FirewallPlan, Plan, PlannedRule, TableSize};
use crate::config::Role;
use crate::config::units::{bytes_text, duration_text, list_text, size_text};
use forwarder_ebpf::abi::{NatAction, NatRule};
use ipnet::Ipv4Net;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// A plan in words and numbers; its JSON is what `forwarder check --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    interfaces: Vec<Interface>,
    missing: Vec<Missing>,
    nat: Nat,
    firewall: Firewall,
    #[serde(serialize_with = "in_order")]
    timeouts_ms: Vec<(&'static str, u64)>,
    flows: Flows,
    icmp: Icmp,
    measure: Measure,
    notices: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Interface {
    name: String,
    role: &'static str,
    slot: u8,
    ifindex: u32,
    mac: String,
    mtu: u32,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, Serialize)]
struct Missing {
    name: String,
    role: &'static str,
    why: String,
}

#[derive(Clone, Debug, Serialize)]
struct Nat {
    mapping: &'static str,
    filtering: &'static str,
    ports: String,
    rules: Vec<Rule>,
    host_addresses: bool,
    local_port_range: (u16, u16),
}

#[derive(Clone, Debug, Serialize)]
struct Rule {
    action: &'static str,
    from: String,
    to: String,
    addresses: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, Serialize)]
struct Firewall {
    default: BTreeMap<&'static str, &'static str>,
    rules: Vec<FirewallRule>,
}

#[derive(Clone, Debug, Serialize)]
struct FirewallRule {
    name: String,
    rule: String,
    host: bool,
    unmet: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Flows {
    ipv4: Table,
    ipv6: Table,
    memory_bytes: u64,
    pick_up_tcp: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    connections: u32,
    bytes_per_connection: u64,
    memory_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Icmp {
    errors_per_second_per_cpu: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Measure {
    time_one_in: Option<u32>,
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.summary().serialize(serializer)
    }
}

impl Plan {
    /// The plan in several lines, for people.
    pub fn describe(&self) -> String {
        self.summary().to_string()
    }

    /// The plan in words and numbers.
    pub fn summary(&self) -> Summary {
        let default = self.firewall.default;
        let table = |size: &TableSize| Table {
            connections: size.connections,
            bytes_per_connection: size.bytes_per_connection(),
            memory_bytes: size.memory_bytes,
        };
        Summary {
            interfaces: self.interfaces.iter().map(interface).collect(),
            missing: self
                .missing
                .iter()
                .map(|missing| Missing {
                    name: missing.name.clone(),
                    role: missing.role.name(),
                    why: missing.why.clone(),
                })
                .collect(),
            nat: self.nat_summary(),
            firewall: Firewall {
                default: BTreeMap::from([("inside", default.inside.name()), ("outside", default.outside.name())]),
                rules: firewall_rules(&self.firewall_rules),
            },
            timeouts_ms: self.timeouts.named().map(|(key, timeout)| (key, timeout.as_millis() as u64)).collect(),
            flows: Flows {
                ipv4: table(&self.sizes.flows_v4),
                ipv6: table(&self.sizes.flows_v6),
                memory_bytes: self.sizes.memory_bytes(),
                pick_up_tcp: self.pick_up_tcp.name(),
            },
            icmp: Icmp { errors_per_second_per_cpu: self.icmp.errors_per_second_per_cpu },
            measure: Measure { time_one_in: self.measure.time_one_in },
            notices: self.notices.clone(),
        }
    }

    fn nat_summary(&self) -> Nat {
        let rule = |rule: &NatRule| {
            let addresses = self.nat.addresses.iter().skip(rule.first_address.into()).take(rule.addresses.into());
            let translates = rule.action == NatAction::Translate as u32;
            Rule {
                action: if translates { "translate" } else { "exempt" },
                from: prefix(rule.from, rule.from_mask),
                to: prefix(rule.to, rule.to_mask),
                addresses: addresses.map(|octets| Ipv4Addr::from(*octets)).collect(),
            }
        };
        Nat {
            mapping: self.nat.mapping.name(),
            filtering: self.nat.filtering.name(),
            ports: format!("{}-{}", self.ports.start(), self.ports.end()),
            rules: self.nat.rules.iter().map(rule).collect(),
            host_addresses: self.nat.host_addresses,
            local_port_range: self.nat.local_port_range,
        }
    }
}

fn firewall_rules(plan: &FirewallPlan) -> Vec<FirewallRule> {
    let row = |(rule, unmet): (&PlannedRule, Option<String>)| FirewallRule {
        name: rule.name.clone(),
        rule: rule.text.clone(),
        host: rule.for_host,
        unmet,
    };
    plan.rules.iter().zip(crate::firewall::shadow::unmet(plan)).map(row).collect()
}

fn interface(planned: &super::PlannedInterface) -> Interface {
    let (ipv4, ipv6) = (Ipv4Addr::from(planned.config.address4), Ipv6Addr::from(planned.config.address6));
    Interface {
        name: planned.name.clone(),
        role: Role::from(planned.side).name(),
        slot: planned.slot,
        ifindex: planned.ifindex,
        mac: planned.config.mac.map(|byte| format!("{byte:02x}")).join(":"),
        mtu: planned.config.mtu,
        ipv4: Some(ipv4).filter(|address| !address.is_unspecified()),
        ipv6: Some(ipv6).filter(|address| !address.is_unspecified()),
    }
}

fn prefix(network: [u8; 4], mask: [u8; 4]) -> String {
    Ipv4Net::with_netmask(network.into(), mask.into()).expect("masks are made from prefixes").to_string()
}

/// As an object whose keys stay in the order of the documentation.
fn in_order<S: Serializer>(timeouts: &[(&'static str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(timeouts.iter().copied())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = |address: Option<String>, family| address.unwrap_or_else(|| format!("no {family}"));
        writeln!(f, "interfaces")?;
        for interface in &self.interfaces {
            let ipv4 = none(interface.ipv4.map(|address| address.to_string()), "IPv4");
            let ipv6 = none(interface.ipv6.map(|address| address.to_string()), "IPv6");
            let (name, role, mac, mtu) = (&interface.name, interface.role, &interface.mac, interface.mtu);
            writeln!(f, "  {name:<15} {role:<7}  {mac}  mtu {mtu}  {ipv4}  {ipv6}")?;
        }
        for missing in &self.missing {
            writeln!(f, "  {:<15} {:<7}  cannot be served: {}", missing.name, missing.role, missing.why)?;
        }
        self.nat.fmt(f)?;
        let defaults = self.firewall.default.iter().map(|(side, action)| format!("{side} {action}"));
        writeln!(f, "firewall, new flows\n  {}", list_text(defaults))?;
        for (at, rule) in (1..).zip(&self.firewall.rules) {
            let host = if rule.host { "host: " } else { "" };
            let unmet = rule.unmet.as_ref().map_or_else(String::new, |why| format!("  -- never met: {why}"));
            writeln!(f, "  {at:>3} {host}{}: {}{unmet}", rule.name, rule.rule)?;
        }
        writeln!(f, "timeouts")?;
        for (key, timeout_ms) in &self.timeouts_ms {
            writeln!(f, "  {key:<15} {}", duration_text(Duration::from_millis(*timeout_ms)))?;
        }
        self.flows.fmt(f)?;
        writeln!(f, "icmp\n  {} errors a second from each CPU", self.icmp.errors_per_second_per_cpu)?;
        match self.measure.time_one_in {
            Some(one_in) => writeln!(f, "measure\n  the processing time of one packet in {one_in}")?,
            None => writeln!(f, "measure\n  no processing times")?,
        }
        if !self.notices.is_empty() {
            writeln!(f, "notices")?;
        }
        self.notices.iter().try_for_each(|notice| writeln!(f, "  {notice}"))
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nat, first match\n  mapping {}, filtering {}", self.mapping, self.filtering)?;
        let (first, last) = self.local_port_range;
        writeln!(f, "  ports {} for translated flows, {first}-{last} for the host's own", self.ports)?;
        for (at, rule) in (1..).zip(&self.rules) {
            let mut line = format!("  {at:>3} {:<9} from {} to {}", rule.action, rule.from, rule.to);
            if !rule.addresses.is_empty() {
                write!(line, " as {}", addresses_text(&rule.addresses))?;
            }
            writeln!(f, "{line}")?;
        }
        if self.rules.is_empty() {
            writeln!(f, "  nothing is translated")?;
        }
        Ok(())
    }
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flows, {} in all", bytes_text(self.memory_bytes))?;
        for (family, table) in [("IPv4", &self.ipv4), ("IPv6", &self.ipv6)] {
            let (connections, each) = (size_text(table.connections.into()), table.bytes_per_connection);
            let memory = bytes_text(table.memory_bytes);
            writeln!(f, "  {family} {connections} connections of {each} bytes, {memory}")?;
        }
        writeln!(f, "  TCP without a handshake: {}", self.pick_up_tcp)
    }
}

/// The addresses of a pool, abridged when there are many.
fn addresses_text(addresses: &[Ipv4Addr]) -> String {
    const SHOWN: usize = 4;
    match addresses {
        [first, .., last] if addresses.len() > SHOWN => format!("{first} … {last} ({} addresses)", addresses.len()),
        _ => list_text(addresses),
    }
}
