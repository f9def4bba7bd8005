//! The `forwarder-bench` binary: arguments, the measurement, what it found.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use forwarder_bench::local;
use forwarder_bench::report::Table;
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
}

fn main() -> ExitCode {
    let mut words: Vec<_> = std::env::args().collect();
    let outcome = if words.get(1).is_some_and(|word| word == supervise::INNER) {
        words.remove(1);
        supervise::unblock().and_then(|()| run(&Cli::parse_from(words))).map(|()| ExitCode::SUCCESS)
    } else {
        // Usage is the parent's to complain about, before anything is started.
        Cli::parse();
        supervise::run()
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("forwarder-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> Result<()> {
    let Measurement::Local(options) = &cli.measurement;
    let table: Table = local::run(options)?;
    println!("{}", table.markdown("device", "flows", &["bare redirect", "nft masquerade"]));
    if let Some(path) = &cli.json {
        let json = serde_json::to_vec_pretty(&table).context("cannot make JSON of the figures")?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
