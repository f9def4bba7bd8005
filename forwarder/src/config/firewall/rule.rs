//! `[[firewall.rule]]` and `[[firewall.host]]`: one rule each, the first that matches decides.

use super::words::{parse_flag, parse_icmp, parse_protocol, parse_range};
use super::{Action, Set};
use crate::config::document::{Field, Section};
use crate::config::error::{ConfigError, Result};
use crate::config::interface::Role;
use crate::config::units::parse_ports;
use crate::firewall::ranges::AddressRange;
use forwarder_ebpf::wire::protocol::{ICMP, ICMPV6, TCP, UDP};
use std::ops::RangeInclusive;

pub(super) const KEYS: &[&str] = &[
    "name",
    "action",
    "in",
    "out",
    "protocol",
    "source",
    "destination",
    "source_ports",
    "destination_ports",
    "icmp",
    "tcp_flags",
    "translated",
    "log",
];
pub(super) const HOST_KEYS: &[&str] = &[
    "name",
    "action",
    "in",
    "protocol",
    "source",
    "destination",
    "source_ports",
    "destination_ports",
    "icmp",
    "tcp_flags",
    "log",
];

/// Where a flow enters or leaves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Where {
    /// By an interface with this role; on one with both, by which side.
    Side(Role),
    /// By this interface.
    Interface(String),
}

/// Some addresses, or all but these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AddressItem {
    /// A range.
    Range {
        /// The range.
        range: AddressRange,
        /// Not these.
        negated: bool,
    },
    /// A set.
    Set {
        /// Its name.
        name: String,
        /// Not these.
        negated: bool,
    },
}

/// An ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpItem {
    /// Its type in ICMP, if it has one there.
    pub v4: Option<u8>,
    /// Its type in ICMPv6, if it has one there.
    pub v6: Option<u8>,
    /// Its code; all when there is none.
    pub code: Option<u8>,
}

/// TCP flags of a packet: those in `mask` are as in `set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    /// Which flags are looked at.
    pub mask: u8,
    /// Which of them are set.
    pub set: u8,
}

/// A rule. What is empty or none matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What the operator calls it.
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Where the flow enters.
    pub enters: Option<Where>,
    /// Where it leaves.
    pub leaves: Option<Where>,
    /// Protocol numbers.
    pub protocols: Vec<u8>,
    /// Sources, before source NAT.
    pub sources: Vec<AddressItem>,
    /// Destinations, after destination NAT.
    pub destinations: Vec<AddressItem>,
    /// Source ports.
    pub source_ports: Vec<RangeInclusive<u16>>,
    /// Destination ports.
    pub destination_ports: Vec<RangeInclusive<u16>>,
    /// ICMP messages.
    pub icmp: Vec<IcmpItem>,
    /// TCP flags of the first packet.
    pub tcp_flags: Option<TcpFlags>,
    /// Whether the flow's source is translated.
    pub translated: Option<bool>,
    /// Whether it is to be logged.
    pub log: bool,
    /// Line of the config that it stands on.
    pub line: usize,
}

/// Reads a rule; keys that the section may not have have been refused before.
pub(super) fn read(section: &mut Section<'_, '_>, sets: &[Set]) -> Result<Rule> {
    let name = section.take("name").map(|field| Ok(field.text("must be a text")?.to_owned())).transpose()?;
    let action = section.require("action", "action = \"allow\", \"deny\" or \"reject\"")?;
    let line = action.line();
    let mut rule = Rule {
        name,
        action: action.choice(&Action::ALL.map(|action| (action.name(), action)), &[])?,
        enters: section.take("in").map(|field| read_where(&field)).transpose()?,
        leaves: section.take("out").map(|field| read_where(&field)).transpose()?,
        protocols: section
            .take("protocol")
            .map_or(Ok(Vec::new()), |field| each(&field, |item| item.parse(parse_protocol)))?,
        sources: section.take("source").map_or(Ok(Vec::new()), |field| read_addresses(&field, sets))?,
        destinations: section.take("destination").map_or(Ok(Vec::new()), |field| read_addresses(&field, sets))?,
        source_ports: Vec::new(),
        destination_ports: Vec::new(),
        icmp: Vec::new(),
        tcp_flags: None,
        translated: section.take("translated").map(|field| field.flag()).transpose()?,
        log: section.take("log").map_or(Ok(false), |field| field.flag())?,
        line,
    };
    read_ports(section, &mut rule)?;
    read_icmp(section, &mut rule)?;
    read_flags(section, &mut rule)?;
    Ok(rule)
}

/// A value, or each of a list.
fn each<T>(field: &Field<'_, '_>, read: impl Fn(&Field<'_, '_>) -> Result<T>) -> Result<Vec<T>> {
    if field.text("").is_ok() {
        return Ok(vec![read(field)?]);
    }
    let items = field.items("must be a text, or a list of some")?;
    items.iter().map(read).collect()
}

fn read_where(field: &Field<'_, '_>) -> Result<Where> {
    match field.text("must be \"inside\", \"outside\" or the name of an interface")? {
        "inside" => Ok(Where::Side(Role::Inside)),
        "outside" => Ok(Where::Side(Role::Outside)),
        name => Ok(Where::Interface(name.to_owned())),
    }
}

fn read_addresses(field: &Field<'_, '_>, sets: &[Set]) -> Result<Vec<AddressItem>> {
    each(field, |item| {
        let text = item.text("must be a prefix, a range, an address or \"@set\", in quotes")?;
        let (text, negated) = text.strip_prefix('!').map_or((text, false), |text| (text, true));
        match text.strip_prefix('@') {
            Some(name) if sets.iter().any(|set| set.name == name) => {
                Ok(AddressItem::Set { name: name.to_owned(), negated })
            }
            Some(name) => Err(item.refuse(format!("names no set; add [[firewall.set]] with name = \"{name}\""))),
            None => match parse_range(text) {
                Ok(range) => Ok(AddressItem::Range { range, negated }),
                Err(problem) => Err(item.refuse(problem)),
            },
        }
    })
}

/// Ports belong to TCP and UDP; with neither named, they mean both.
fn read_ports(section: &mut Section<'_, '_>, rule: &mut Rule) -> Result<()> {
    let fields = [section.take("source_ports"), section.take("destination_ports")];
    let places = [&mut rule.source_ports, &mut rule.destination_ports];
    for (field, place) in fields.iter().zip(places) {
        let Some(field) = field else { continue };
        *place = each(field, |item| item.parse(parse_ports))?;
        if rule.protocols.iter().any(|protocol| ![TCP, UDP].contains(protocol)) {
            return Err(
                field.refuse("only fits protocol = \"tcp\", \"udp\" or both; others have no ports that are looked at")
            );
        }
    }
    if rule.protocols.is_empty() && fields.iter().any(Option::is_some) {
        rule.protocols = vec![TCP, UDP];
    }
    Ok(())
}

fn read_icmp(section: &mut Section<'_, '_>, rule: &mut Rule) -> Result<()> {
    let Some(field) = section.take("icmp") else { return Ok(()) };
    if rule.protocols.is_empty() || rule.protocols.iter().any(|protocol| ![ICMP, ICMPV6].contains(protocol)) {
        return Err(field.refuse("needs protocol = \"icmp\", \"icmpv6\" or [\"icmp\", \"icmpv6\"] beside it"));
    }
    rule.icmp = each(&field, |item| item.parse(parse_icmp))?
        .into_iter()
        .map(|(v4, v6, code)| IcmpItem { v4, v6, code })
        .collect();
    Ok(())
}

fn read_flags(section: &mut Section<'_, '_>, rule: &mut Rule) -> Result<()> {
    let Some(field) = section.take("tcp_flags") else { return Ok(()) };
    if rule.protocols != [TCP] {
        return Err(field.refuse("needs protocol = \"tcp\" beside it"));
    }
    let mut flags = TcpFlags { mask: 0, set: 0 };
    for (bit, set) in each(&field, |item| item.parse(parse_flag))? {
        if flags.mask & bit != 0 {
            return Err::<_, ConfigError>(field.refuse("names a flag twice"));
        }
        flags.mask |= bit;
        flags.set |= if set { bit } else { 0 };
    }
    rule.tcp_flags = Some(flags);
    Ok(())
}
