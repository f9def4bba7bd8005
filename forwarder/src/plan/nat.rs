//! From `[nat]` to the datapath's rules: every `from` with every `to`, exemptions first, with addresses that the host
//! may or may not have yet.

use super::interfaces::Wanted;
use super::{HostFacts, NatPlan, PlanError, PlannedInterface};
use crate::config::units::list_text;
use crate::config::{Config, ExemptRule, Role, SourceRule};
use forwarder_ebpf::abi::{MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatAction, NatRule, Side};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// Who is inside when one interface serves both sides and the config does not say: RFC 1918, and RFC 6598, which VPCs
/// may use as well.
const INSIDE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// Fewest ports that are enough for the host's own connections.
const LOCAL_PORTS: usize = 1024;
/// Ports below are for those who may bind them; the kernel refuses them as local ports.
const UNPRIVILEGED: u16 = 1024;

/// What matters of the interfaces.
pub(super) struct Arms {
    /// The interface that serves both sides, if there is one.
    both: Option<String>,
    /// There are interfaces, and none is to be outside.
    inside_only: bool,
    /// The public address of rules that name none.
    address: Option<Ipv4Addr>,
}

impl Arms {
    pub(super) fn of(wanted: &[Wanted], found: &[PlannedInterface], facts: &HostFacts) -> Self {
        let outside = |interface: &&PlannedInterface| {
            interface.side as u8 & Side::Outside as u8 != 0 && interface.config.address4 != [0; 4]
        };
        let routed = found.iter().filter(outside).find(|interface| Some(interface.ifindex) == facts.default_route_v4);
        let chosen = routed.or_else(|| found.iter().find(outside));
        Self {
            both: wanted.iter().find(|wanted| wanted.role == Role::Both).map(|wanted| wanted.name.clone()),
            inside_only: !wanted.is_empty() && wanted.iter().all(|wanted| wanted.role == Role::Inside),
            address: chosen.map(|interface| interface.config.address4.into()),
        }
    }

    /// Everybody inside, as prefixes.
    fn inside(&self) -> &'static [Ipv4Net] {
        const EVERYBODY: [Ipv4Net; 1] = [Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)];
        // On an interface for both sides, whom a rule names by `from` is what tells the inside from the world.
        if self.both.is_some() { &INSIDE } else { &EVERYBODY }
    }
}

/// Plans source NAT.
pub(super) fn plan(
    config: &Config,
    facts: &HostFacts,
    arms: &Arms,
    notices: &mut Vec<String>,
) -> Result<NatPlan, PlanError> {
    let default = [SourceRule { to: vec![Ipv4Net::default()], ..SourceRule::default() }];
    let sources = if config.nat.sources.is_empty() { &default[..] } else { &config.nat.sources };
    let mut rules = Rules::default();
    for exempt in &config.nat.exempts {
        rules.exempt(exempt, arms);
    }
    for source in sources {
        rules.translate(source, arms);
    }
    rules.check(config)?;
    note_arms(config, arms, rules.left_out > 0, notices);
    let has =
        |address: &Ipv4Addr| facts.links.iter().flat_map(|link| &link.addresses_v4).any(|own| own.addr() == *address);
    let (own, foreign): (Vec<_>, Vec<_>) = rules.addresses.iter().map(|octets| Ipv4Addr::from(*octets)).partition(has);
    if let Some(first) = foreign.first() {
        notices.push(format!(
            "{} of the NAT addresses, {first} first, {} not this host's: answers come back only if the network routes \
             them here.",
            foreign.len(),
            if foreign.len() == 1 { "is" } else { "are" }
        ));
    }
    Ok(NatPlan {
        mapping: config.nat.mapping,
        filtering: config.nat.filtering,
        rules: rules.rules,
        addresses: rules.addresses,
        host_addresses: !own.is_empty(),
        local_port_range: local_port_range(config, facts, !own.is_empty(), notices),
    })
}

#[derive(Default)]
struct Rules {
    rules: Vec<NatRule>,
    addresses: Vec<[u8; 4]>,
    /// Addresses of pools that are too large by themselves to be listed.
    addresses_refused: usize,
    /// Rules as they would be listed, also those that do not fit.
    wanted: usize,
    /// Rules of the config that have no address yet.
    left_out: usize,
}

impl Rules {
    fn exempt(&mut self, exempt: &ExemptRule, arms: &Arms) {
        self.pair(&exempt.from, &exempt.to, arms, NatRule { action: NatAction::Exempt as u32, ..NatRule::default() });
    }

    fn translate(&mut self, source: &SourceRule, arms: &Arms) {
        let default = arms.address.map(Ipv4Net::from);
        let pool: Vec<Ipv4Net> = match (source.addresses.as_slice(), default) {
            ([], None) => {
                self.left_out += 1;
                return;
            }
            ([], Some(default)) => vec![default],
            (prefixes, _) => prefixes.to_vec(),
        };
        let (first_address, addresses) = self.add_pool(&pool);
        let action = NatAction::Translate as u32;
        self.pair(&source.from, &source.to, arms, NatRule { first_address, addresses, action, ..NatRule::default() });
    }

    fn pair(&mut self, from: &[Ipv4Net], to: &[Ipv4Net], arms: &Arms, rule: NatRule) {
        let from = if from.is_empty() { arms.inside() } else { from };
        self.wanted = self.wanted.saturating_add(from.len().saturating_mul(to.len()));
        if self.wanted > MAX_NAT_RULES as usize {
            return;
        }
        for from in from {
            for to in to {
                let (from_mask, to_mask) = (from.netmask().octets(), to.netmask().octets());
                let (from, to) = (from.network().octets(), to.network().octets());
                self.rules.push(NatRule { from, from_mask, to, to_mask, ..rule });
            }
        }
    }

    /// First address and number. Rules with the same pool share it.
    fn add_pool(&mut self, pool: &[Ipv4Net]) -> (u16, u16) {
        let most = MAX_NAT_ADDRESSES as usize;
        let count = pool.iter().map(|prefix| 1_usize << (32 - prefix.prefix_len())).fold(0, usize::saturating_add);
        if count > most {
            self.addresses_refused = self.addresses_refused.saturating_add(count);
            return (0, 0);
        }
        let prefix_addresses = |prefix: &Ipv4Net| u32::from(prefix.network())..=u32::from(prefix.broadcast());
        let pool: Vec<[u8; 4]> = pool.iter().flat_map(prefix_addresses).map(u32::to_be_bytes).collect();
        let first = self.addresses.windows(count).position(|window| window == pool).unwrap_or_else(|| {
            self.addresses.extend(&pool);
            self.addresses.len() - count
        });
        // More than fit in 16 bits do not pass `check`.
        (first as u16, count as u16)
    }

    fn check(&self, config: &Config) -> Result<(), PlanError> {
        let addresses = self.addresses.len().saturating_add(self.addresses_refused);
        if addresses > MAX_NAT_ADDRESSES as usize {
            return Err(PlanError::TooManyAddresses { place: config.origin.place("nat.source.addresses"), addresses });
        }
        if self.wanted > MAX_NAT_RULES as usize {
            let key = if config.nat.sources.is_empty() { "nat.exempt" } else { "nat.source" };
            return Err(PlanError::TooManyRules { place: config.origin.place(key), rules: self.wanted });
        }
        Ok(())
    }
}

/// What the operator may not expect of his rules on these interfaces.
fn note_arms(config: &Config, arms: &Arms, left_out: bool, notices: &mut Vec<String>) {
    if arms.inside_only {
        notices.push("No interface is outside, so nothing is translated.".to_owned());
    } else if left_out {
        notices.push(
            "No outside interface has an IPv4 address yet, so rules that would use it translate nothing until it has one."
                .to_owned(),
        );
    }
    let Some(both) = &arms.both else { return };
    let nat = &config.nat;
    let from = nat.sources.iter().map(|rule| &rule.from).chain(nat.exempts.iter().map(|rule| &rule.from));
    if from.clone().any(|from| from.iter().any(|prefix| prefix.prefix_len() == 0)) {
        notices.push(format!(
            "{both} serves both sides and a rule of [nat] is from 0.0.0.0/0, so what it matches counts as inside, \
             whoever sent it, and firewall.default.inside decides on it."
        ));
    }
    if nat.sources.is_empty() || from.clone().any(Vec::is_empty) {
        notices.push(format!("{both} serves both sides: {} are inside, all others outside.", list_text(INSIDE)));
    }
}

/// The host's own ports, outside those that NAT uses on the same address.
fn local_port_range(config: &Config, facts: &HostFacts, host_addresses: bool, notices: &mut Vec<String>) -> (u16, u16) {
    let present = facts.local_port_range;
    let nat = &config.nat.ports;
    if !host_addresses || present.1 < *nat.start() || present.0 > *nat.end() {
        return present;
    }
    let below = |least: u16, most: u16| least.max(UNPRIVILEGED)..=most.min(nat.start().saturating_sub(1));
    let above = |least: u16, most: u16| least.max(nat.end().saturating_add(1)).max(UNPRIVILEGED)..=most;
    let (least, most) = present;
    let within = larger(below(least, most), above(least, most));
    let anywhere = larger(below(0, u16::MAX), above(0, u16::MAX));
    match [within, anywhere].into_iter().find(|range| range.len() >= LOCAL_PORTS) {
        Some(range) => {
            let (first, last) = with_mixed_ends(&range);
            notices.push(format!(
                "NAT uses an address of this host, so the host's own connections use ports {first} to {last} instead of \
                 {least} to {most} (net.ipv4.ip_local_port_range)."
            ));
            (first, last)
        }
        None => {
            notices.push(format!(
                "nat.ports leaves fewer than {LOCAL_PORTS} ports in one piece to the host, so its own connections share \
                 ports {least} to {most} with NAT and may fail; narrow nat.ports."
            ));
            present
        }
    }
}

fn larger(a: RangeInclusive<u16>, b: RangeInclusive<u16>) -> RangeInclusive<u16> {
    if a.len() > b.len() { a } else { b }
}

/// The kernel wants one end odd and the other even, or it complains in its log.
fn with_mixed_ends(range: &RangeInclusive<u16>) -> (u16, u16) {
    let (first, last) = (*range.start(), *range.end());
    (first + u16::from(first % 2 == last % 2), last)
}
