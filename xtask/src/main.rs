//! `cargo xtask VERB`: the chores of the project, one file a verb. Dispatches and turns an error into one line.

mod demo;
mod kernel_test;
mod setup;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::build_ebpf;

/// The chores of forwarder.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing to build and test: compiler and linker for BPF, programs that the tests drive
    Setup(setup::Args),
    /// Build the BPF objects and say where they are; `cargo build` does the same for the binaries that embed them
    BuildEbpf,
    /// Watch clients reach servers through the appliance, in a little VPC made of namespaces
    Demo(demo::Args),
    /// Run everything that must hold: format, lints, tests, documentation, and the datapath on kernel 6.1 in qemu
    Test(test::Args),
    /// Check what no compiler checks: which module may name aya or unsafe, sizes, openings, leftovers
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::BuildEbpf => {
            for binary in [build_ebpf::DATAPATH, build_ebpf::LOAD] {
                let object = build_ebpf::build(binary, &test::target_directory().join("bpf"))?;
                println!("{} ({} warnings)", object.path.display(), object.warnings);
            }
            Ok(())
        }
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Tidy => tidy::run(),
    }
}
