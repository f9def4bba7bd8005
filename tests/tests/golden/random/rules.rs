//! Rules that nobody thought of: as a config says them, and read a second time, one word after the other, by something
//! that shares nothing with the first reader.

use super::probes::Probe;
use std::fmt::Write as _;
use std::net::IpAddr;

/// What a rule can say, in the order of `RuleAction`.
pub const ACTIONS: [&str; 3] = ["deny", "allow", "reject"];

/// Two sets, rules for the host, other rules, and what becomes of the rest.
#[derive(Clone, Debug)]
pub struct Policy {
    pub sets: [Vec<What>; 2],
    /// `[[firewall.host]]`.
    pub host: Vec<Rule>,
    /// `[[firewall.rule]]`.
    pub rules: Vec<Rule>,
    /// Actions by default: from inside, from outside.
    pub defaults: [u8; 2],
}

/// One rule. What is empty or none matches everything.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Index into `ACTIONS`.
    pub action: u8,
    pub enters: Option<&'static str>,
    pub leaves: Option<&'static str>,
    pub sources: Vec<Item>,
    pub destinations: Vec<Item>,
    pub service: Service,
    pub translated: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub struct Service {
    pub protocols: Vec<u8>,
    pub source_ports: Vec<(u16, u16)>,
    pub destination_ports: Vec<(u16, u16)>,
    pub icmp: Vec<Icmp>,
    /// Name, bit, and whether it has to be set.
    pub flags: Vec<((&'static str, u8), bool)>,
}

/// A message as it is written; its types in ICMP and ICMPv6, its code.
pub type Icmp = (&'static str, u8, u8, Option<u8>);

/// Some addresses, or all but these.
#[derive(Clone, Debug)]
pub struct Item {
    pub negated: bool,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Prefix(IpAddr, u8),
    Range(IpAddr, IpAddr),
    Set(usize),
}

impl Policy {
    /// As a config says it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, set) in self.sets.iter().enumerate() {
            let prefixes = list(set, What::text);
            write!(text, "[[firewall.set]]\nname = \"set{number}\"\nprefixes = {prefixes}\n").expect(WRITES);
        }
        self.host.iter().for_each(|rule| rule.write("host", &mut text));
        self.rules.iter().for_each(|rule| rule.write("rule", &mut text));
        text
    }

    /// The first rule that means this packet, counted from the first for the host, and what it says of it; of a packet for
    /// the host that none means, nobody says anything.
    pub fn judge(&self, probe: &Probe) -> (Option<usize>, u8) {
        let (before, rules) =
            if probe.path.leaves.is_host() { (0, &self.host) } else { (self.host.len(), &self.rules) };
        match rules.iter().position(|rule| rule.fits(probe, &self.sets)) {
            Some(at) => (Some(before + at), rules[at].action),
            None if probe.path.leaves.is_host() => (None, 1),
            None => (None, self.defaults[usize::from(probe.path.enters.side == "outside")]),
        }
    }
}

impl Rule {
    fn fits(&self, probe: &Probe, sets: &[Vec<What>; 2]) -> bool {
        let path = probe.path;
        self.enters.is_none_or(|place| path.enters.is(place))
            && self.leaves.is_none_or(|place| path.leaves.is(place))
            && self.translated.is_none_or(|translated| translated == path.translated)
            && names(&self.sources, probe.source, sets)
            && names(&self.destinations, probe.destination, sets)
            && self.service.fits(probe)
    }

    fn write(&self, table: &str, text: &mut String) {
        let Service { protocols, source_ports, destination_ports, icmp, flags } = &self.service;
        let quoted = |text: &str| format!("{text:?}");
        let values = [
            ("action", Some(quoted(ACTIONS[usize::from(self.action)]))),
            ("in", self.enters.map(quoted)),
            ("out", self.leaves.map(quoted)),
            ("translated", self.translated.map(|translated| translated.to_string())),
            ("source", some(&self.sources, Item::text)),
            ("destination", some(&self.destinations, Item::text)),
            ("protocol", some(protocols, u8::to_string)),
            ("source_ports", some(source_ports, ports_text)),
            ("destination_ports", some(destination_ports, ports_text)),
            ("icmp", some(icmp, |(text, ..)| (*text).to_owned())),
            ("tcp_flags", some(flags, |((name, _), set)| format!("{}{name}", if *set { "" } else { "!" }))),
        ];
        writeln!(text, "[[firewall.{table}]]").expect(WRITES);
        for (key, value) in values.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            writeln!(text, "{key} = {value}").expect(WRITES);
        }
    }
}

impl Service {
    fn fits(&self, probe: &Probe) -> bool {
        let within = |ranges: &[(u16, u16)], port: Option<u16>| {
            ranges.is_empty()
                || port.is_some_and(|port| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)))
        };
        let is_message = |(_, v4, v6, code): &Icmp| {
            probe.icmp().is_some_and(|(kind, is)| {
                kind == if probe.source.is_ipv4() { *v4 } else { *v6 } && code.is_none_or(|code| code == is)
            })
        };
        let has = |((_, bit), set): &((&str, u8), bool)| probe.flags().is_some_and(|flags| (flags & bit != 0) == *set);
        (self.protocols.is_empty() || self.protocols.contains(&probe.protocol()))
            && within(&self.source_ports, probe.ports().map(|(source, _)| source))
            && within(&self.destination_ports, probe.ports().map(|(_, destination)| destination))
            && (self.icmp.is_empty() || self.icmp.iter().any(is_message))
            && self.flags.iter().all(has)
    }
}

impl Item {
    fn text(&self) -> String {
        format!("{}{}", if self.negated { "!" } else { "" }, self.what.text())
    }
}

impl What {
    fn text(&self) -> String {
        match self {
            Self::Prefix(network, bits) => format!("{network}/{bits}"),
            Self::Range(first, last) => format!("{first}-{last}"),
            Self::Set(number) => format!("@set{number}"),
        }
    }

    fn contains(&self, address: IpAddr, sets: &[Vec<Self>; 2]) -> bool {
        match (self, address) {
            (Self::Prefix(IpAddr::V4(network), bits), IpAddr::V4(address)) => {
                (0..*bits).all(|bit| (network.to_bits() ^ address.to_bits()) >> (31 - bit) & 1 == 0)
            }
            (Self::Prefix(IpAddr::V6(network), bits), IpAddr::V6(address)) => {
                (0..*bits).all(|bit| (network.to_bits() ^ address.to_bits()) >> (127 - bit) & 1 == 0)
            }
            (Self::Prefix(..), _) => false,
            (Self::Range(first, last), _) => {
                first.is_ipv4() == address.is_ipv4() && (*first..=*last).contains(&address)
            }
            (Self::Set(number), _) => sets[*number].iter().any(|what| what.contains(address, sets)),
        }
    }
}

/// What is named, less what is negated; with nothing but negations, everything less these.
fn names(items: &[Item], address: IpAddr, sets: &[Vec<What>; 2]) -> bool {
    let (negated, named): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|item| item.negated);
    let is_in = |items: &[&Item]| items.iter().any(|item| item.what.contains(address, sets));
    (named.is_empty() || is_in(&named)) && !is_in(&negated)
}

const WRITES: &str = "strings take everything";

fn ports_text((first, last): &(u16, u16)) -> String {
    format!("{first}-{last}")
}

/// A list in TOML.
fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    format!("{:?}", items.iter().map(text).collect::<Vec<_>>())
}

fn some<T>(items: &[T], text: impl Fn(&T) -> String) -> Option<String> {
    (!items.is_empty()).then(|| list(items, text))
}
