//! The `forwarder-bench` binary: arguments, the measurement, what it found. A supervisor runs it again as its child, so that
//! Ctrl-C leaves nothing behind.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use forwarder_bench::lab::Conntrack;
use forwarder_bench::report::Table;
use forwarder_bench::{cps, latency, local};
use forwarder_kit::supervise;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures forwarder beside the kernel and the bare redirect, on this machine, in one run. Needs root
#[derive(Parser)]
#[command(name = "forwarder-bench", version)]
struct Cli {
    /// Also write the figures, round by round, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Packets per second through namespaces of its own: generator, device under test, counting sink, all on one core
    Local(local::Options),
    /// New flows per second, connections opened and closed, and what happens when the table is full
    Cps(cps::Options),
    /// Round trips, idle and beside a load
    Latency(latency::Options),
}

fn main() -> ExitCode {
    let mut words: Vec<_> = std::env::args_os().collect();
    let inner = words.get(1).is_some_and(|word| word == supervise::INNER);
    let outcome = if inner {
        words.remove(1);
        supervise::unblock().and_then(|()| run(&Cli::parse_from(words))).map(|()| ExitCode::SUCCESS)
    } else {
        // Refuse and help before anything is started.
        Cli::parse();
        let conntrack = Conntrack::read();
        supervise::run(move || drop(conntrack.clone()))
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("forwarder-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> Result<()> {
    let (table, across) = match &cli.measurement {
        Measurement::Local(options) => (local::run(options)?, "flows"),
        Measurement::Cps(options) => (cps::run(options)?, "measure"),
        Measurement::Latency(options) => (latency::run(options)?, "percentile"),
    };
    for (title, part) in sections(&table, across) {
        println!("### {title}\n\n{}", part.markdown("device", across, &["bare redirect", "nft masquerade"]));
    }
    if let Some(path) = &cli.json {
        let json = serde_json::to_vec_pretty(&table).context("cannot make JSON of the figures")?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The table in parts that have all labels in common but the device and `across`, with what they have in common.
fn sections(table: &Table, across: &str) -> Vec<(String, Table)> {
    let mut sections: Vec<(String, Table)> = Vec::new();
    for row in &table.rows {
        let own = row.labels.iter().filter(|(name, _)| !["device", across].contains(&name.as_str()));
        let title = own.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
        let title = if title.is_empty() { table.name.clone() } else { title };
        match sections.iter_mut().find(|(there, _)| *there == title) {
            Some((_, part)) => part.rows.push(row.clone()),
            None => sections.push((title, Table { name: table.name.clone(), rows: vec![row.clone()] })),
        }
    }
    sections
}
