//! Everything in one run and one report: the programs alone, packets per second, round trips, new flows.

use crate::report::Table;
use crate::{cps, latency, local, prog};
use anyhow::Result;

/// How thoroughly.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// The headline figures in a minute: fewer and shorter rounds, no rules, no controller
    #[arg(long)]
    pub quick: bool,
}

/// Measures one thing after another; each says beforehand how long it takes.
///
/// # Errors
/// When something cannot be set up.
pub fn run(options: Options) -> Result<Vec<Table>> {
    let Options { quick } = options;
    eprintln!("all: this takes about {}", if quick { "a minute" } else { "7 minutes" });
    let mut tables = local::run(&if quick { local::Options::headline() } else { local::Options::thorough() })?;
    tables.extend([
        prog::run(&prog::Options::headline(quick))?,
        latency::run(&if quick { latency::Options::headline() } else { latency::Options::thorough() })?,
        cps::run(&if quick { cps::Options::headline() } else { cps::Options::thorough() })?,
    ]);
    Ok(tables)
}
