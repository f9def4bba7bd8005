//! `[firewall]`: who may begin a flow, who may speak to the host, and the sets of addresses that rules name.

mod rule;
mod set;
mod words;

pub use rule::{AddressItem, IcmpItem, Rule, TcpFlags, Where};
pub use set::{Set, SetError, is_name as is_set_name, parse as parse_set, read_file as read_set_file};
pub use words::{parse_range, protocol_name};

use super::document::Section;
use super::error::Result;
use std::ops::RangeInclusive;

pub(super) const KEYS: &[&str] = &["default", "set", "rule", "host", "limits", "max_memory", "logs_per_second_per_cpu"];
const LIMITS_KEYS: &[&str] = &["unanswered_percent", "new_per_second_per_source", "flows_per_source"];
const DEFAULT_KEYS: &[&str] = &["inside", "outside"];
/// What rules may take of the kernel's memory, bytes.
const MEMORY: RangeInclusive<u32> = 64 << 10..=1 << 30;
/// Lines of rules that are logged, a second and CPU.
const LOGS: RangeInclusive<u32> = 0..=100_000;

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It may begin.
    Allow,
    /// Its packets are dropped silently.
    Deny,
    /// Its packets are dropped, and their sender is told: by a TCP reset, or administratively prohibited.
    Reject,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Reject];

    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
        }
    }
}

/// What becomes of a new flow that no rule matches, by where it enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// It enters inside.
    pub inside: Action,
    /// It enters outside.
    pub outside: Action,
}

impl Default for Defaults {
    /// As behind a NAT gateway: clients may speak first, the world may not.
    fn default() -> Self {
        Self { inside: Action::Allow, outside: Action::Deny }
    }
}

/// `[firewall.limits]`: so that a flood takes room neither from what is established nor from everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Share of each flow table that may wait for its first answer, for each side that flows enter by, percent.
    pub unanswered_percent: u32,
    /// Flows that one source (IPv4 address, IPv6 /64) may open in a second. None: any number.
    pub new_per_second_per_source: Option<u32>,
    /// Flows that one source may have at once. None: any number.
    pub flows_per_source: Option<u32>,
}

impl Default for Limits {
    /// A table that is full of questions is not full of connections: a tenth is left to the other side and to answers. What
    /// one source may do, nobody but the operator knows.
    fn default() -> Self {
        Self { unanswered_percent: 90, new_per_second_per_source: None, flows_per_source: None }
    }
}

/// `[firewall]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// For flows that no rule matches.
    pub default: Defaults,
    /// Sets of addresses, by name.
    pub sets: Vec<Set>,
    /// First match decides about a flow.
    pub rules: Vec<Rule>,
    /// First match decides about a packet for the host; without one it passes.
    pub host: Vec<Rule>,
    /// Limits for new flows.
    pub limits: Limits,
    /// Memory that compiled rules may take in the kernel, bytes; twice as much for a moment when they change.
    pub max_memory: u32,
    /// Lines that rules with `log = true` may write in one second, of each CPU.
    pub logs_per_second_per_cpu: u32,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            default: Defaults::default(),
            sets: Vec::new(),
            rules: Vec::new(),
            host: Vec::new(),
            limits: Limits::default(),
            // A million IPv4 prefixes that do not touch take 36 MiB.
            max_memory: 64 << 20,
            // Of a scan enough to recognise it, and no disk is full by tomorrow.
            logs_per_second_per_cpu: 100,
        }
    }
}

impl Firewall {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let mut firewall =
            Self { default: section.section("default", DEFAULT_KEYS, read_defaults)?, ..Self::default() };
        section.sections("set", set::KEYS, |section| {
            firewall.sets.push(set::read(section, &firewall.sets)?);
            Ok(())
        })?;
        let sets = &firewall.sets;
        firewall.rules = section.sections("rule", rule::KEYS, |section| rule::read(section, sets))?;
        firewall.host = section.sections("host", rule::HOST_KEYS, |section| rule::read(section, sets))?;
        firewall.limits = section.section("limits", LIMITS_KEYS, read_limits)?;
        if let Some(field) = section.take("max_memory") {
            firewall.max_memory = field.size(&MEMORY)?;
        }
        if let Some(field) = section.take("logs_per_second_per_cpu") {
            firewall.logs_per_second_per_cpu = field.size(&LOGS)?;
        }
        Ok(firewall)
    }
}

fn read_limits(section: &mut Section<'_, '_>) -> Result<Limits> {
    let mut limits = Limits::default();
    if let Some(field) = section.take("unanswered_percent") {
        limits.unanswered_percent = field.size(&(1..=100))?;
    }
    let sources = [
        ("new_per_second_per_source", &mut limits.new_per_second_per_source),
        ("flows_per_source", &mut limits.flows_per_source),
    ];
    for (key, limit) in sources {
        if let Some(field) = section.take(key) {
            *limit = Some(field.size(&(1..=1 << 24))?);
        }
    }
    Ok(limits)
}

fn read_defaults(section: &mut Section<'_, '_>) -> Result<Defaults> {
    let mut defaults = Defaults::default();
    for (side, action) in [("inside", &mut defaults.inside), ("outside", &mut defaults.outside)] {
        if let Some(field) = section.take(side) {
            *action = field.choice(&Action::ALL.map(|action| (action.name(), action)), &[])?;
        }
    }
    Ok(defaults)
}
