//! `[[interface]]`: which interfaces are served, and who is behind them.

use super::document::Section;
use super::error::Result;
use forwarder_ebpf::abi::{MAX_IFACES, Side};

pub(super) const KEYS: &[&str] = &["name", "role", "reverse_path", "bogons"];

/// Longest name that the kernel allows, bytes: IFNAMSIZ less the final zero.
const NAME_BYTES: usize = 16 - 1;

/// Who is behind an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Clients.
    Inside,
    /// The world.
    Outside,
    /// Clients and the world: the one-armed shape.
    Both,
}

impl Role {
    /// As the datapath calls it.
    pub const fn side(self) -> Side {
        match self {
            Self::Inside => Side::Inside,
            Self::Outside => Side::Outside,
            Self::Both => Side::Both,
        }
    }

    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Both => "both",
        }
    }
}

impl From<Side> for Role {
    fn from(side: Side) -> Self {
        match side {
            Side::Inside => Self::Inside,
            Side::Outside => Self::Outside,
            Side::Both => Self::Both,
        }
    }
}

/// Whether the kernel has to have a route back to a flow's source (RFC 3704).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// By the interface that the packet came by.
    Strict,
    /// By any.
    Loose,
    /// It is not asked for.
    #[default]
    Off,
}

impl ReversePath {
    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Loose => "loose",
            Self::Off => "off",
        }
    }
}

/// One interface. Its place in the list is its slot in the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// As `ip link` shows it.
    pub name: String,
    /// Who is behind it.
    pub role: Role,
    /// The check of where flows come from.
    pub reverse_path: ReversePath,
    /// Whether flows from addresses that the world outside does not have are dropped.
    pub drops_bogons: bool,
}

/// Reads one more interface; it has to fit those `before` it.
pub(super) fn read(section: &mut Section<'_, '_>, before: &[Interface]) -> Result<Interface> {
    let field = section.require("name", "name = \"ens5\", as `ip link` shows it")?;
    let name = field.text("must be a text; write the name that `ip link` shows")?.to_owned();
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(odd) || name == "." || name == ".." {
        return Err(field.refuse(format!(
            "cannot be an interface: a name has 1 to {NAME_BYTES} bytes without spaces, `/` and `:`; \
             write the one that `ip link` shows"
        )));
    }
    if before.iter().any(|other| other.name == name) {
        return Err(field.refuse("is listed already, and an interface has one role; remove one of the entries"));
    }
    if before.len() >= MAX_IFACES as usize {
        return Err(field.refuse(format!("is one too many: {MAX_IFACES} interfaces can be served; remove some")));
    }
    let field = section.require("role", "role = \"inside\", \"outside\" or \"both\"")?;
    let roles = [Role::Inside, Role::Outside, Role::Both].map(|role| (role.name(), role));
    let role = field.choice(&roles, &[])?;
    if let Some(other) = before.iter().find(|other| (other.role == Role::Both) != (role == Role::Both)) {
        return Err(field.refuse(format!(
            "does not go with role \"{}\" of {}: an interface that serves both sides stands without inside and outside \
             ones; change one of the roles",
            other.role.name(),
            other.name
        )));
    }
    let mut interface = Interface { name, role, reverse_path: ReversePath::Off, drops_bogons: false };
    if let Some(field) = section.take("reverse_path") {
        let choices = [ReversePath::Strict, ReversePath::Loose, ReversePath::Off].map(|choice| (choice.name(), choice));
        interface.reverse_path = field.choice(&choices, &[])?;
    }
    if let Some(field) = section.take("bogons") {
        interface.drops_bogons = field.choice(&[("drop", true), ("pass", false)], &[])?;
    }
    Ok(interface)
}
