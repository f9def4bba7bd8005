//! The command line.

use crate::api::MOST_TALKERS;
use crate::flows::filter::Filter;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// NAT gateway, router and stateful firewall in XDP
#[derive(Debug, Parser)]
#[command(name = "forwarder", version)]
pub struct Cli {
    /// Name of the instance: one per network namespace; names its sockets and pins
    #[arg(long, global = true, default_value = "forwarder", env = "FORWARDER_INSTANCE", value_parser = parse_instance)]
    pub instance: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load, attach and forward until SIGTERM or SIGINT
    Run(Run),
    /// Parse and plan without touching the host; prints the plan
    Check(Check),
    /// Interfaces, rates, drops, flows, ports and processing time
    Status(Output),
    /// The flow table
    #[command(subcommand)]
    Flows(Flows),
    /// What flow logs record
    #[command(subcommand)]
    FlowLogs(FlowLogs),
    /// Who talks most now, with translated addresses: connections or inside hosts
    Top(Top),
    /// Firewall rules in their order: what each has met, and which are never met
    Rules(Output),
    /// Sets of addresses that rules name
    #[command(subcommand)]
    Sets(Sets),
    /// What would become of a flow, and why: SRC:PORT -> DST:PORT/tcp [in IFACE]
    Explain(Explain),
    /// Apply a changed configuration without losing a flow or a packet; what cannot be applied changes nothing
    Reload(Output),
}

/// `forwarder run`
#[derive(Debug, Args)]
pub struct Run {
    /// Configuration; without it /etc/forwarder/forwarder.toml, without that the defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log to standard error as a JSON object a line; FORWARDER_LOG sets the level (error, warn, info, debug)
    #[arg(long)]
    pub json: bool,
}

/// `forwarder check`
#[derive(Debug, Args)]
pub struct Check {
    /// Configuration; without it /etc/forwarder/forwarder.toml, without that the defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `forwarder sets`
#[derive(Debug, Subcommand)]
pub enum Sets {
    /// All sets, or the ranges of one
    List {
        /// Which set
        name: Option<String>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// These come in: at once, until the set's text in the configuration changes, a reset or a stop
    Add(ChangeSet),
    /// These go out
    Remove(ChangeSet),
    /// It has these and no others
    Replace(ChangeSet),
    /// It is as configured again
    Reset {
        /// Which set
        name: String,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// Which set, and by what it changes.
#[derive(Debug, Args)]
pub struct ChangeSet {
    /// Which set
    pub name: String,
    /// Prefixes, ranges (192.0.2.1-192.0.2.9) or addresses
    pub ranges: Vec<String>,
    /// A file of them, one a line
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `forwarder explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// SRC:PORT -> DST:PORT/tcp [in IFACE]; quote it, or the shell takes the arrow
    #[arg(required = true)]
    pub flow: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `forwarder flows`
#[derive(Debug, Subcommand)]
pub enum Flows {
    /// One connection a line, as its originator sends it and as it leaves
    List(Select),
    /// Forget connections; their next packets begin new ones
    Flush(Select),
    /// How many connections
    Count(Select),
}

/// Which connections, and how to print.
#[derive(Debug, Args)]
pub struct Select {
    /// Which connections.
    #[command(flatten)]
    pub filter: Filter,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `forwarder top`
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// Which connections.
    #[command(flatten)]
    pub filter: Filter,
    /// What the biggest have most of; only hosts have connections
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Inside hosts instead of connections
    #[arg(long)]
    pub hosts: bool,
    /// How many are printed; on the screen there are as many as fit
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_TALKERS)))]
    pub count: u16,
    /// Measure for a second, print and end; as always where standard output is no terminal
    #[arg(long)]
    pub once: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// What the biggest have most of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Bits per second, both directions together
    #[default]
    Rate,
    /// Packets per second, both directions together
    Packets,
    /// Connections
    Connections,
}

/// `forwarder flow-logs`
#[derive(Debug, Subcommand)]
pub enum FlowLogs {
    /// Follow records as they come, until SIGINT or the forwarder's end
    Tail(Tail),
}

/// `forwarder flow-logs tail`
#[derive(Debug, Args)]
pub struct Tail {
    /// Which records: `srcaddr 10.0.1.0/24 and dstport 443 and action REJECT`, `host 10.0.1.5 and not udp`
    pub filter: Vec<String>,
    /// Which fields, as in the configuration: "default" or "${srcaddr} ${dstaddr} ${rule-name} …"
    #[arg(long, default_value = "default")]
    pub format: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// It becomes part of paths, on a file system that takes no dots.
fn parse_instance(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(name.to_owned());
    }
    Err("1 to 64 letters, digits, `-` or `_`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_instance_names_files() {
        assert!(parse_instance("edge-1_a").is_ok());
        for name in ["", "a.b", "../x", "a/b", "a b"] {
            assert!(parse_instance(name).is_err(), "{name}");
        }
    }
}
