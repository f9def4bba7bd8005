//! From the operator's rules to matchers: names of sets and interfaces become numbers. The rules for the host come first;
//! they and the others are never met by the same packet, which shows in its way.

use super::action_number;
use super::interfaces::Wanted;
use crate::config::{
    Action, AddressItem, Firewall, IcmpItem, ReversePath, Role, Rule, Where, parse_range, protocol_name,
};
use crate::firewall::compile::Matcher;
use crate::firewall::ranges::{Addresses, Ranges};
use forwarder_ebpf::abi::MAX_IFACES;
use forwarder_ebpf::abi::firewall::{
    LAST_ORIGIN, LAST_SERVICE, OUT_HOST, OUT_UNSERVED, RuleAction, origin_key, rule, service_key, switch, way_key,
};
use forwarder_ebpf::wire::protocol::{ICMP, ICMPV6, TCP, UDP};
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// The rules as the datapath takes them, and what is known of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirewallPlan {
    /// As numbers; the counter's number is still to be put into each word.
    pub matchers: Vec<Matcher>,
    /// As the operator knows them, in the same order.
    pub rules: Vec<PlannedRule>,
    /// Bits of `Control::firewall` that follow.
    pub switches: u32,
    /// Slots whose sources must be reached by the same interface, and at all: a bit each.
    pub reverse_path: (u32, u32),
}

/// A rule as the operator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRule {
    /// Its name, or its line.
    pub name: String,
    /// What it is known by when the rules change: its name if it has one, else all that it says.
    pub identity: String,
    /// What it says, in one line.
    pub text: String,
    /// What it does.
    pub action: Action,
    /// About packets for the host.
    pub for_host: bool,
    /// To be logged.
    pub log: bool,
}

impl FirewallPlan {
    /// The rules for these interfaces, which are named in the order of their slots. `notices` get what an operator may not
    /// expect.
    pub fn of(firewall: &Firewall, interfaces: &[(String, Role)], notices: &mut Vec<String>) -> Self {
        let wanted = |(name, role): &(String, Role)| Wanted::plain(name, *role);
        plan(firewall, &interfaces.iter().map(wanted).collect::<Vec<_>>(), notices)
    }
}

/// Names become numbers. `wanted` are the interfaces in the order of their slots.
pub(super) fn plan(firewall: &Firewall, wanted: &[Wanted], notices: &mut Vec<String>) -> FirewallPlan {
    let mut plan = FirewallPlan::default();
    for (slot, interface) in (0..MAX_IFACES).zip(wanted) {
        match interface.reverse_path {
            ReversePath::Strict => plan.reverse_path.0 |= 1 << slot,
            ReversePath::Loose => plan.reverse_path.1 |= 1 << slot,
            ReversePath::Off => continue,
        }
        plan.switches |= switch::REVERSE_PATH;
    }
    bogons(wanted, &mut plan);
    let host = firewall.host.iter().map(|rule| (rule, true));
    for (rule, for_host) in host.chain(firewall.rules.iter().map(|rule| (rule, false))) {
        let name = rule.name.clone().unwrap_or_else(|| format!("line {}", rule.line));
        for place in [&rule.enters, &rule.leaves].into_iter().flatten() {
            if let Where::Interface(interface) = place
                && !wanted.iter().any(|wanted| wanted.name == *interface)
            {
                notices
                    .push(format!("Firewall rule `{name}` names {interface}, which is not served: it never matches."));
            }
        }
        plan.matchers.push(matcher(firewall, rule, wanted, for_host));
        plan.switches |= if for_host { switch::HOST_RULES } else { switch::RULES };
        plan.switches |= if rule.translated.is_some() { switch::TRANSLATED } else { 0 };
        let text = describe(rule);
        let identity = rule.name.clone().unwrap_or_else(|| text.clone());
        plan.rules.push(PlannedRule { name, identity, text, action: rule.action, for_host, log: rule.log });
    }
    plan
}

/// Sources that the world outside does not have: what is for special purposes only (RFC 6890 and the registries it made),
/// and of IPv6 all but global unicast (2000::/3) and what NAT64 has (RFC 6052).
const BOGONS: [&str; 19] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::-64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff",
    "64:ff9b::1:0:0-1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:10::/28",
    "2001:db8::/32",
    "3fff::/20",
    "4000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

/// The check of sources is a rule before all others, for each interface that wants it.
fn bogons(wanted: &[Wanted], plan: &mut FirewallPlan) {
    let ranges: Vec<_> = BOGONS.iter().map(|text| parse_range(text).expect("a prefix")).collect();
    let sources = Addresses::of(&ranges);
    for (slot, interface) in (0..).zip(wanted).filter(|(_, interface)| interface.drops_bogons) {
        let way = |outside| span(way_key(slot, outside, 0, false), way_key(slot, outside, OUT_UNSERVED, true));
        let ways = if interface.role == Role::Both { vec![way(true)] } else { vec![way(false), way(true)] };
        plan.matchers.push(Matcher {
            sources: sources.clone(),
            destinations: Addresses::all(),
            services: Ranges::up_to(LAST_SERVICE.into()),
            origins: Ranges::up_to(LAST_ORIGIN.into()),
            ways: ways.into_iter().collect(),
            word: RuleAction::Deny as u64 | rule::BOGON,
        });
        let name = format!("bogons by {}", interface.name);
        let (identity, text) = (name.clone(), "deny sources that the world outside does not have".to_owned());
        plan.rules.push(PlannedRule { name, identity, text, action: Action::Deny, for_host: false, log: false });
        plan.switches |= switch::RULES;
    }
}

fn matcher(firewall: &Firewall, rule: &Rule, wanted: &[Wanted], for_host: bool) -> Matcher {
    let log = if rule.log { rule::LOG } else { 0 };
    Matcher {
        sources: addresses(firewall, &rule.sources),
        destinations: addresses(firewall, &rule.destinations),
        services: services(rule),
        origins: origins(rule),
        ways: ways(rule, wanted, for_host),
        word: action_number(rule.action) as u64 | log,
    }
}

/// What is named, less what is negated; with nothing but negations, everything less these.
fn addresses(firewall: &Firewall, items: &[AddressItem]) -> Addresses {
    let of = |wanted: bool| -> Vec<Addresses> {
        let resolve = |item: &AddressItem| match item {
            AddressItem::Range { range, negated } => (*negated == wanted).then(|| Addresses::of(&[*range])),
            AddressItem::Set { name, negated } => (*negated == wanted).then(|| {
                let set = firewall.sets.iter().find(|set| set.name == *name);
                set.map_or_else(Addresses::default, |set| set.addresses.clone())
            }),
        };
        items.iter().filter_map(resolve).collect()
    };
    let (named, negated) = (of(false), of(true));
    let base = match named.as_slice() {
        [] => Addresses::all(),
        // As it is: large sets are shared, not copied.
        [one] => one.clone(),
        several => Addresses::union(several.iter()),
    };
    if negated.is_empty() { base } else { base.without(&Addresses::union(negated.iter())) }
}

fn span(first: u64, last: u64) -> (u128, u128) {
    (first.into(), last.into())
}

fn services(rule: &Rule) -> Ranges {
    if rule.protocols.is_empty() {
        return Ranges::up_to(LAST_SERVICE.into());
    }
    let of = |protocol: &u8| -> Vec<(u128, u128)> {
        let key = |detail| service_key(*protocol, detail);
        match *protocol {
            TCP | UDP if !rule.destination_ports.is_empty() => {
                rule.destination_ports.iter().map(|ports| span(key(*ports.start()), key(*ports.end()))).collect()
            }
            ICMP | ICMPV6 if !rule.icmp.is_empty() => rule
                .icmp
                .iter()
                .filter_map(|item| icmp(item, *protocol))
                .map(|(one, other)| span(key(one), key(other)))
                .collect(),
            _ => vec![span(key(0), key(u16::MAX))],
        }
    };
    rule.protocols.iter().flat_map(of).collect()
}

/// First and last type and code that an ICMP message can have.
fn icmp(item: &IcmpItem, protocol: u8) -> Option<(u16, u16)> {
    let kind = if protocol == ICMP { item.v4 } else { item.v6 }?;
    let both = |code| u16::from_be_bytes([kind, code]);
    Some((both(item.code.unwrap_or(0)), both(item.code.unwrap_or(u8::MAX))))
}

fn origins(rule: &Rule) -> Ranges {
    if rule.source_ports.is_empty() && rule.tcp_flags.is_none() {
        return Ranges::up_to(LAST_ORIGIN.into());
    }
    let all: &[RangeInclusive<u16>] = &[0..=u16::MAX];
    let ports = if rule.source_ports.is_empty() { all } else { &rule.source_ports };
    let fits = |flags: &u8| rule.tcp_flags.is_none_or(|wanted| flags & wanted.mask == wanted.set);
    let of = |flags: u8| {
        ports.iter().map(move |ports| span(origin_key(flags, *ports.start()), origin_key(flags, *ports.end())))
    };
    (0..0x40).filter(fits).flat_map(of).collect()
}

/// Every way that a packet can take and the rule means.
fn ways(rule: &Rule, wanted: &[Wanted], for_host: bool) -> Ranges {
    let mut ways = Vec::new();
    for (slot, interface) in (0..).zip(wanted) {
        for from_outside in [false, true] {
            if !is_meant(rule.enters.as_ref(), interface, from_outside) {
                continue;
            }
            let outs = outs(rule, wanted, for_host, from_outside);
            for (first, last) in outs {
                match rule.translated {
                    None => ways
                        .push(span(way_key(slot, from_outside, first, false), way_key(slot, from_outside, last, true))),
                    Some(translated) => ways.extend((first..=last).map(|out| {
                        let key = way_key(slot, from_outside, out, translated);
                        span(key, key)
                    })),
                }
            }
        }
    }
    ways.into_iter().collect()
}

/// Slots that it may leave by, first and last.
fn outs(rule: &Rule, wanted: &[Wanted], for_host: bool, from_outside: bool) -> Vec<(u8, u8)> {
    if for_host {
        return vec![(OUT_HOST, OUT_HOST)];
    }
    if rule.leaves.is_none() {
        return vec![(0, OUT_UNSERVED)];
    }
    // Who enters an interface for both sides by the one leaves it by the other.
    let meant = |(_, interface): &(u8, &Wanted)| is_meant(rule.leaves.as_ref(), interface, !from_outside);
    (0..).zip(wanted).filter(meant).map(|(slot, _)| (slot, slot)).collect()
}

/// Whether a packet by this interface, and if that serves both sides, by this side, is meant.
fn is_meant(place: Option<&Where>, interface: &Wanted, outside: bool) -> bool {
    let side = match interface.role {
        Role::Both if outside => Role::Outside,
        Role::Both => Role::Inside,
        role => role,
    };
    match place {
        None => true,
        Some(Where::Side(role)) => *role == side,
        Some(Where::Interface(name)) => *name == interface.name,
    }
}

/// The rule in one line, as short as what it leaves open allows.
fn describe(rule: &Rule) -> String {
    let mut text = rule.action.name().to_owned();
    let mut say = |word: &str, what: String| {
        if !what.is_empty() {
            write!(text, " {word} {what}").expect("strings take everything");
        }
    };
    let place = |place: &Option<Where>| match place {
        None => String::new(),
        Some(Where::Side(role)) => role.name().to_owned(),
        Some(Where::Interface(name)) => name.clone(),
    };
    say("in", place(&rule.enters));
    say("out", place(&rule.leaves));
    say("protocol", list(&rule.protocols, |number| protocol_name(*number)));
    say(
        "icmp",
        list(&rule.icmp, |item| {
            let kind = item.v4.or(item.v6).unwrap_or(0);
            item.code.map_or_else(|| kind.to_string(), |code| format!("{kind}/{code}"))
        }),
    );
    say("from", list(&rule.sources, item_text));
    say("port", list(&rule.source_ports, ports_text));
    say("to", list(&rule.destinations, item_text));
    say("port", list(&rule.destination_ports, ports_text));
    say("flags", rule.tcp_flags.map_or(String::new(), |flags| format!("{:#04x}/{:#04x}", flags.set, flags.mask)));
    say("translated", rule.translated.map_or(String::new(), |translated| translated.to_string()));
    text
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(",")
}

fn ports_text(ports: &RangeInclusive<u16>) -> String {
    if ports.start() == ports.end() { ports.start().to_string() } else { format!("{}-{}", ports.start(), ports.end()) }
}

fn item_text(item: &AddressItem) -> String {
    let (text, negated) = match item {
        AddressItem::Set { name, negated } => (format!("@{name}"), negated),
        AddressItem::Range { range, negated } => (range.to_string(), negated),
    };
    if *negated { format!("!{text}") } else { text }
}
