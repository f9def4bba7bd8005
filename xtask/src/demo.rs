//! `cargo xtask demo`: everything from a fresh machine to a running little VPC, in one command.
//!
//! This verb sees to the tools, builds, and starts the program that does it (`tests/src/bin/demo`). That one is no part of
//! xtask because `forwarder/build.rs` depends on xtask, and because namespaces need root while cargo does not.

use crate::{setup, test};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::Command;
use xtask::{exec, workspace};

/// What to show.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// One interface for both sides, as most NAT instances have, instead of an inside and an outside one
    #[arg(long)]
    one_armed: bool,
    /// Stop before the end and leave everything running to look around, until Enter is pressed
    #[arg(long)]
    hold: bool,
}

/// Ten seconds of the benchmark; it has to be built for speed, which takes minutes the first time.
fn side_by_side() -> Result<()> {
    println!("\n== Side by side (building for speed first)");
    let packages = ["build", "--quiet", "--release", "--package", "forwarder", "--package", "forwarder-bench"];
    exec::run(Command::new("cargo").args(packages).current_dir(workspace()))?;
    let directory = test::target_directory().join("release");
    let mut command = as_root(&directory.join("forwarder-bench"))?;
    command.arg("side-by-side").env("FORWARDER_BIN", directory.join("forwarder"));
    let status = command.status().with_context(|| format!("cannot start: {}", exec::display(&command)))?;
    ensure!(status.success(), "the side by side could not be measured, see above");
    Ok(())
}

/// Namespaces need root.
fn as_root(program: &Path) -> Result<Command> {
    if setup::is_root() {
        return Ok(Command::new(program));
    }
    ensure!(
        !exec::on_path("sudo").is_empty(),
        "network namespaces need root and there is no sudo: run `cargo xtask demo` as root"
    );
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

/// Sets up, builds, runs.
///
/// # Errors
/// When a tool cannot be had, something does not build, or the demo's verdict is that something did not work.
pub fn run(args: &Args) -> Result<()> {
    setup::run(&setup::Args { kernel: false })?;
    let packages = ["build", "--quiet", "--package", "forwarder", "--package", "forwarder-tests", "--bins"];
    exec::run(Command::new("cargo").args(packages).current_dir(workspace()))?;
    let directory = test::target_directory().join("debug");
    let mut command = as_root(&directory.join("demo"))?;
    command.env("FORWARDER_BIN", directory.join("forwarder"));
    command.args(args.one_armed.then_some("--one-armed")).args(args.hold.then_some("--hold"));
    let status = command.status().with_context(|| format!("cannot start: {}", exec::display(&command)))?;
    if !status.success() {
        bail!("the demo did not show what it should, see above");
    }
    side_by_side()
}
