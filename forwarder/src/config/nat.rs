//! `[nat]`: who is translated, to which addresses and ports, and how.

use super::document::{Field, Section};
use super::error::Result;
use super::units;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

pub(super) const KEYS: &[&str] = &["mapping", "filtering", "ports", "source", "exempt"];
const SOURCE_KEYS: &[&str] = &["from", "to", "addresses"];
const EXEMPT_KEYS: &[&str] = &["from", "to"];

/// What a flow's public address and port depend on (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// On both endpoints, so that one address serves as many flows to *each* remote as it has ports.
    #[default]
    EndpointDependent,
}

impl Mapping {
    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointDependent => "endpoint-dependent",
        }
    }
}

/// Whose packets may use a mapping from outside (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Only the remote endpoint that the flow was opened to; what a stateful firewall does.
    #[default]
    AddressAndPortDependent,
}

impl Filtering {
    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

/// `[[nat.source]]`: translate the source of flows from these prefixes towards those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRule {
    /// Whose flows. Empty: everybody inside.
    pub from: Vec<Ipv4Net>,
    /// Towards whom; never empty.
    pub to: Vec<Ipv4Net>,
    /// All addresses of these prefixes are used. Empty: the outside interface's primary address.
    pub addresses: Vec<Ipv4Net>,
}

/// `[[nat.exempt]]`: leave flows from these prefixes towards those as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExemptRule {
    /// Whose flows. Empty: everybody inside.
    pub from: Vec<Ipv4Net>,
    /// Towards whom; never empty.
    pub to: Vec<Ipv4Net>,
}

/// `[nat]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// What a flow's public address and port depend on.
    pub mapping: Mapping,
    /// Whose packets may use a mapping from outside.
    pub filtering: Filtering,
    /// Ports that translated flows may use.
    pub ports: RangeInclusive<u16>,
    /// Who is translated: first match. Empty: everybody inside.
    pub sources: Vec<SourceRule>,
    /// Who is not, whatever `sources` say: first match.
    pub exempts: Vec<ExemptRule>,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            // No well-known ports, and 1,024 at the end for the host's own connections.
            ports: 1024..=65_535 - 1024,
            sources: Vec::new(),
            exempts: Vec::new(),
        }
    }
}

impl Nat {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let mut nat = Self::default();
        if let Some(field) = section.take("mapping") {
            let mapping = Mapping::EndpointDependent;
            nat.mapping = field.choice(&[(mapping.name(), mapping)], &["endpoint-independent"])?;
        }
        if let Some(field) = section.take("filtering") {
            let filtering = Filtering::AddressAndPortDependent;
            let later = ["endpoint-independent", "address-dependent"];
            nat.filtering = field.choice(&[(filtering.name(), filtering)], &later)?;
        }
        if let Some(field) = section.take("ports") {
            nat.ports = field.parse(units::parse_ports)?;
        }
        nat.sources = section.sections("source", SOURCE_KEYS, read_source)?;
        nat.exempts = section.sections("exempt", EXEMPT_KEYS, read_exempt)?;
        Ok(nat)
    }
}

fn read_source(section: &mut Section<'_, '_>) -> Result<SourceRule> {
    Ok(SourceRule {
        from: section.take("from").map_or(Ok(Vec::new()), |field| read_prefixes(&field))?,
        to: section.take("to").map_or(Ok(vec![Ipv4Net::default()]), |field| read_prefixes(&field))?,
        addresses: section.take("addresses").map_or(Ok(Vec::new()), |field| read_addresses(&field))?,
    })
}

fn read_exempt(section: &mut Section<'_, '_>) -> Result<ExemptRule> {
    Ok(ExemptRule {
        from: section.take("from").map_or(Ok(Vec::new()), |field| read_prefixes(&field))?,
        to: read_prefixes(&section.require("to", "to = [\"10.0.0.0/8\"], the networks that see the true source")?)?,
    })
}

fn read_prefixes(list: &Field<'_, '_>) -> Result<Vec<Ipv4Net>> {
    let items = list.items("must be a list with at least one prefix, such as [\"10.0.0.0/16\"]")?;
    items.iter().map(|item| item.parse(units::parse_prefix)).collect()
}

/// Prefixes whose addresses can be a source, none of them twice: such an address would serve twice as many hosts.
fn read_addresses(list: &Field<'_, '_>) -> Result<Vec<Ipv4Net>> {
    let mut prefixes: Vec<Ipv4Net> = Vec::new();
    for item in list.items("must be a list with at least one address, such as [\"198.51.100.10\"]")? {
        let prefix = item.parse(units::parse_prefix)?;
        if !can_be_a_source(prefix) {
            return Err(item.refuse("cannot be a packet's source; write addresses that hosts can have"));
        }
        if let Some(other) = prefixes.iter().find(|other| other.contains(&prefix) || prefix.contains(*other)) {
            return Err(item.refuse(format!("overlaps with \"{other}\" of the same list; write every address once")));
        }
        prefixes.push(prefix);
    }
    Ok(prefixes)
}

fn can_be_a_source(prefix: Ipv4Net) -> bool {
    let ends = [prefix.network(), prefix.broadcast()];
    let odd = |address: Ipv4Addr| address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224;
    prefix.prefix_len() >= 8 && !ends.into_iter().any(odd)
}
