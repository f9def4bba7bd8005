//! What the operator wrote: `/etc/forwarder/forwarder.toml`, one file per section here, each with its struct, its
//! defaults with their reasons, and its reading. What it means on this host is `plan`'s.
//!
//! A config is taken whole or refused whole. Every refusal is one line: file, line, key, value, what is allowed and what
//! to do. Unknown keys are refused. What a later version may add is a key in a section, or a section: a file here and a
//! line in `read_all`.

mod document;
mod error;
mod firewall;
mod flow_logs;
mod interface;
mod limits;
mod nat;
mod timeouts;
pub mod units;

pub use error::{ConfigError, Place};
pub use firewall::{
    Action, AddressItem, Defaults, Firewall, IcmpItem, Limits, Rule, Set, TcpFlags, Where, protocol_name,
};
pub use firewall::{SetError, is_set_name, parse_range, parse_set, read_set_file};
pub use flow_logs::{
    Cloud, Destination, FlowLogs, Identity, InterfaceIdentity, Kind as DestinationKind, Objects, Rotation,
};
pub use interface::{Interface, ReversePath, Role};
pub use limits::{CONNECTIONS, Flows, Icmp, Measure, PickUpTcp};
pub use nat::{ExemptRule, Filtering, Mapping, Nat, SourceRule};
pub use timeouts::Timeouts;

use document::{Document, Section};
use error::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// Where a config is when none is named.
pub const DEFAULT_PATH: &str = "/etc/forwarder/forwarder.toml";

const KEYS: &[&str] = &["interface", "nat", "firewall", "timeouts", "flows", "flow_logs", "icmp", "measure"];

/// A whole config. The default serves a NAT instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interfaces to serve. Empty: the host's routes decide.
    pub interfaces: Vec<Interface>,
    /// Translation.
    pub nat: Nat,
    /// Who may begin a flow.
    pub firewall: Firewall,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Flow tables.
    pub flows: Flows,
    /// Flow logs.
    pub flow_logs: FlowLogs,
    /// ICMP errors of our own.
    pub icmp: Icmp,
    /// What is measured.
    pub measure: Measure,
    /// Where all this stands.
    pub origin: Origin,
}

/// Where a config stands. Prints as the name of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file; none when all is by default.
    pub file: Option<String>,
    lines: BTreeMap<String, usize>,
}

impl Origin {
    /// Where a key stands, such as `flows.max`, for an error about it. Only the file when the key is not there.
    pub fn place(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => Place { file: self.to_string(), line: *line }.to_string(),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file.as_deref().unwrap_or("built-in defaults"))
    }
}

/// Reads a config file. Without a path: the one at `DEFAULT_PATH`, or the defaults when there is none; `Config::origin`
/// says which it was.
///
/// # Errors
/// When the file cannot be read or is refused.
pub fn read(path: Option<&Path>) -> std::result::Result<Config, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text, &file.display().to_string()),
        Err(error) if path.is_none() && error.kind() == ErrorKind::NotFound => Ok(Config::default()),
        Err(source) => Err(ConfigError::Read { path: file.to_owned(), source }),
    }
}

/// Reads a config from a text; errors call it `name`.
///
/// # Errors
/// When it is refused.
pub fn parse(text: &str, name: &str) -> std::result::Result<Config, ConfigError> {
    let document = Document::new(name, text);
    let config = document.read(KEYS, read_all)?;
    Ok(Config { origin: Origin { file: Some(name.to_owned()), lines: document.into_lines() }, ..config })
}

fn read_all(root: &mut Section<'_, '_>) -> Result<Config> {
    let mut interfaces: Vec<Interface> = Vec::new();
    root.sections("interface", interface::KEYS, |section| {
        interfaces.push(interface::read(section, &interfaces)?);
        Ok(())
    })?;
    Ok(Config {
        interfaces,
        nat: root.section("nat", nat::KEYS, Nat::read)?,
        firewall: root.section("firewall", firewall::KEYS, Firewall::read)?,
        timeouts: root.section("timeouts", timeouts::KEYS, Timeouts::read)?,
        flows: root.section("flows", limits::FLOWS_KEYS, Flows::read)?,
        flow_logs: root.section("flow_logs", flow_logs::KEYS, FlowLogs::read)?,
        icmp: root.section("icmp", limits::ICMP_KEYS, Icmp::read)?,
        measure: root.section("measure", limits::MEASURE_KEYS, Measure::read)?,
        origin: Origin::default(),
    })
}

#[cfg(test)]
mod tests;
