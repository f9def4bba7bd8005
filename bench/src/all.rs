//! Everything in one run and one report: the programs alone, packets per second, round trips, new flows.

use crate::report::Table;
use crate::{cps, latency, local, prog};
use anyhow::Result;

/// How thoroughly.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// The headline figures in less than a minute: fewer and shorter rounds
    #[arg(long)]
    pub quick: bool,
}

/// Measures one thing after another; each says beforehand how long it takes.
///
/// # Errors
/// When something cannot be set up.
pub fn run(options: Options) -> Result<Vec<Table>> {
    let Options { quick } = options;
    eprintln!("all: this takes about {}", if quick { "50 s" } else { "8 minutes" });
    Ok(vec![
        local::run(&if quick { local::Options::headline() } else { local::Options::thorough() })?,
        prog::run(&prog::Options::headline(quick))?,
        latency::run(&if quick { latency::Options::headline() } else { latency::Options::thorough() })?,
        cps::run(&if quick { cps::Options::headline() } else { cps::Options::thorough() })?,
    ])
}
