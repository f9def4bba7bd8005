//! `[firewall]`: who may begin a flow.

use super::document::Section;
use super::error::Result;

pub(super) const KEYS: &[&str] = &["default"];
const DEFAULT_KEYS: &[&str] = &["inside", "outside"];

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It may begin.
    Allow,
    /// Its packets are dropped silently.
    Deny,
}

impl Action {
    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
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

/// `[firewall]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// For flows that no rule matches.
    pub default: Defaults,
}

impl Firewall {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        Ok(Self { default: section.section("default", DEFAULT_KEYS, read_defaults)? })
    }
}

fn read_defaults(section: &mut Section<'_, '_>) -> Result<Defaults> {
    let mut defaults = Defaults::default();
    for (side, action) in [("inside", &mut defaults.inside), ("outside", &mut defaults.outside)] {
        if let Some(field) = section.take(side) {
            *action = field.choice(&[Action::Allow, Action::Deny].map(|action| (action.name(), action)), &[])?;
        }
    }
    Ok(defaults)
}
