//! The `forwarder-bench` binary: arguments, the measurement, what it found. A supervisor runs it again as its child, so that
//! Ctrl-C leaves nothing behind.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use forwarder::host::Bpffs;
use forwarder_bench::lab::Conntrack;
use forwarder_bench::report::Report;
use forwarder_bench::{all, compare, cps, flow_logs, latency, local, prog, side_by_side, two_host};
use forwarder_kit::supervise;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Measures forwarder beside the kernel and the bare redirect, on this machine, in one run. Needs root
#[derive(Parser)]
#[command(name = "forwarder-bench", version)]
struct Cli {
    /// Where report.json, report.md and charts go [default: bench-results/TIME-TABLES]
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also draw charts (SVG)
    #[arg(long, global = true)]
    plot: bool,
    /// Also write the report, with the figures round by round, as JSON to this file
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything below but `flow-logs` and `two-host`, in one report
    All(all::Options),
    /// Packets per second through namespaces of its own: generator, device under test, counting sink, all on one core
    Local(local::Options),
    /// New flows per second, connections opened and closed, and what happens when the table is full
    Cps(cps::Options),
    /// Connections of one packet each way: that each is in the flow logs, exact, and what that costs
    FlowLogs(flow_logs::Options),
    /// Round trips, idle and beside a load
    Latency(latency::Options),
    /// Nanoseconds per packet of the programs alone, for each path and several sizes of the flow table
    Prog(prog::Options),
    /// Two machines and what lies between them: highest rates without and with little loss, round trips
    TwoHost(two_host::Options),
    /// Ten seconds: forwarder, kernel NAT and the bare redirect, in words
    SideBySide,
    /// What changed between two runs beyond the spread
    Compare(compare::Options),
}

fn main() -> ExitCode {
    let mut words: Vec<_> = std::env::args_os().collect();
    let inner = words.get(1).is_some_and(|word| word == supervise::INNER);
    let outcome = if inner {
        words.remove(1);
        supervise::unblock().and_then(|()| run(&Cli::parse_from(words)))
    } else {
        // Refuse and help before anything is started.
        match Cli::parse() {
            // It makes nothing that would have to be removed.
            cli @ Cli { command: Command::Compare(_), .. } => run(&cli),
            _ => {
                let conntrack = Conntrack::read();
                let had_bpffs = bpffs().is_some();
                supervise::run(move || {
                    drop(conntrack.clone());
                    if let Some(left) = bpffs().filter(|_| !had_bpffs) {
                        // Whatever the reason, it is told by what is there then.
                        let _ = left.unmount_if_unused();
                        if bpffs().is_some() {
                            eprintln!(
                                "forwarder-bench: left the BPF file system on {} mounted: it is in use",
                                Bpffs::USUAL
                            );
                        }
                    }
                })
            }
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("forwarder-bench: {error:#}");
        ExitCode::FAILURE
    })
}

/// The machine's BPF file system, as if it were ours. One that cannot be looked at is none that we mounted.
fn bpffs() -> Option<Bpffs> {
    Bpffs::left_behind(Path::new(Bpffs::USUAL)).ok().flatten()
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let (mut report, begun) = (Report::begin(), Instant::now());
    if !matches!(cli.command, Command::Compare(_)) {
        report.machine.warnings().iter().for_each(|warning| eprintln!("caution: {warning}"));
    }
    report.tables = match &cli.command {
        Command::All(options) => all::run(*options)?,
        Command::Local(options) => local::run(options)?,
        Command::Cps(options) => vec![cps::run(options)?],
        Command::FlowLogs(options) => vec![flow_logs::run(options)?],
        Command::Latency(options) => vec![latency::run(options)?],
        Command::Prog(options) => vec![prog::run(options)?],
        Command::TwoHost(options) => match two_host::run(options)? {
            Some(table) => vec![table],
            None => return Ok(ExitCode::SUCCESS),
        },
        Command::SideBySide => {
            print!("{}", side_by_side::run()?);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Compare(options) => {
            return Ok(if compare::run(options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    };
    report.took_seconds = begun.elapsed().as_secs_f64();
    // Before anything is written: what was measured is seen even where nothing can be.
    print!("{}", report.markdown());
    let directory = cli.out.clone().unwrap_or_else(|| report.directory());
    report.write(&directory, cli.plot)?;
    eprintln!("written to {}", directory.display());
    if let Some(path) = &cli.json {
        std::fs::write(path, report.json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
