//! `cargo xtask test`: all that must hold, in one command; CI is this. Prints every step, its time and the command
//! that failed. A failed step does not keep the later ones from running: one run shows everything.
//!
//! Tests in network namespaces need root. Run by somebody else, only the test programs are started with sudo; what is
//! compiled stays the caller's.

use crate::{kernel_test, setup, tidy};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;
use xtask::{build_ebpf, exec, workspace};

/// The kernel that everything must load on besides the one we run on.
const OLDEST_KERNEL: &str = "6.1";

/// Which tests.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only the test on this kernel, in qemu: 6.1
    #[arg(long, value_name = "VERSION", conflicts_with = "no_kernel")]
    kernel: Option<String>,
    /// All but the test on another kernel
    #[arg(long)]
    no_kernel: bool,
}

/// What the test programs reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Steps taken, and what came of them.
#[derive(Default)]
struct Session {
    counts: Counts,
    failures: Vec<String>,
}

/// Runs the steps.
///
/// # Errors
/// When a step failed; it was named when it did, and is again at the end.
pub fn run(args: &Args) -> Result<()> {
    let mut session = Session::default();
    let kernel = !args.no_kernel;
    if !session.step("setup", |_| setup::run(&setup::Args { kernel })) {
        return session.end();
    }
    if args.kernel.is_none() {
        session.local();
    }
    if kernel {
        let version = args.kernel.as_deref().unwrap_or(OLDEST_KERNEL);
        session.step(&format!("kernel {version}"), |counts| {
            let result = build_forwarder().and_then(|forwarder| kernel_test::run(version, &forwarder));
            counts.add(Counts {
                passed: usize::from(result.is_ok()),
                failed: usize::from(result.is_err()),
                ignored: 0,
            });
            result
        });
    }
    session.end()
}

impl Session {
    /// Everything that runs on this machine's own kernel.
    fn local(&mut self) {
        self.step("format", |_| exec::run(cargo().args(["fmt", "--all", "--check"])));
        self.step("tidy", |_| tidy::run());
        self.step("BPF without warnings", |_| {
            [build_ebpf::DATAPATH, build_ebpf::LOAD].into_iter().try_for_each(|binary| {
                let object = build_ebpf::build(binary, &target_directory().join("bpf"))?;
                ensure!(object.warnings == 0, "{binary} has {} warnings, printed above", object.warnings);
                Ok(())
            })
        });
        self.step("clippy", |_| {
            exec::run(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ]))
        });
        self.step("build", |_| exec::run(cargo().args(["build", "--workspace"])));
        self.step("tests", run_tests);
        self.step("documentation", |_| {
            exec::run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
        });
    }

    /// Runs one step, prints how it went, and returns whether it went well.
    fn step(&mut self, name: &str, action: impl FnOnce(&mut Counts) -> Result<()>) -> bool {
        println!("test: {name}");
        let start = Instant::now();
        let result = action(&mut self.counts);
        let seconds = start.elapsed().as_secs_f32();
        match &result {
            Ok(()) => println!("test: {name}: ok, {seconds:.1} s"),
            Err(error) => {
                println!("test: {name}: FAILED, {seconds:.1} s: {error:#}");
                self.failures.push(format!("{name}: {error:#}"));
            }
        }
        result.is_ok()
    }

    fn end(self) -> Result<()> {
        let Counts { passed, failed, ignored } = self.counts;
        for failure in &self.failures {
            println!("test: FAILED: {failure}");
        }
        if ignored > 0 {
            println!("test: {ignored} tests ignored, each with its reason in the source");
        }
        println!("{passed} passed, {failed} failed");
        if !self.failures.is_empty() {
            bail!("{} steps failed, see above", self.failures.len());
        }
        Ok(())
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// From a line as `test result: ok. 12 passed; 1 failed; 2 ignored; 0 measured; …`; zero from any other.
    fn parse(line: &str) -> Self {
        let Some(result) = line.trim().strip_prefix("test result: ") else { return Self::default() };
        let words: Vec<_> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let count = |name: &str| {
            let at = words.iter().position(|word| *word == name).filter(|&at| at > 0);
            at.and_then(|at| words[at - 1].parse().ok()).unwrap_or(0)
        };
        Self { passed: count("passed"), failed: count("failed"), ignored: count("ignored") }
    }
}

/// `cargo test` for everything, its output passed on and counted.
fn run_tests(counts: &mut Counts) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).stdout(Stdio::piped());
    if !setup::is_root() {
        ensure!(
            !exec::on_path("sudo").is_empty(),
            "tests in network namespaces need root and there is no sudo: run `cargo xtask test` as root"
        );
        println!("test: not root: test programs are started with sudo, for network namespaces and BPF");
        let host = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
        command.env(host, "sudo --preserve-env");
    }
    let mut tests = command.spawn().with_context(|| format!("cannot start: {}", exec::display(&command)))?;
    let output = BufReader::new(tests.stdout.take().expect("stdout is piped"));
    for line in output.split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let text = String::from_utf8_lossy(&line);
        println!("{text}");
        counts.add(Counts::parse(&text));
    }
    std::io::stdout().flush().context("cannot write to standard output")?;
    let status = tests.wait().context("cannot wait for the tests")?;
    ensure!(status.success(), "command failed ({status}): {}", exec::display(&command));
    Ok(())
}

/// The binary that the test on another kernel takes along.
fn build_forwarder() -> Result<PathBuf> {
    exec::run(cargo().args(["build", "--package", "forwarder"]))?;
    Ok(target_directory().join("debug/forwarder"))
}

/// Where cargo puts what it builds for the host.
#[must_use]
pub fn target_directory() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(Counts::parse(line), Counts { passed: 12, failed: 1, ignored: 2 });
        assert_eq!(Counts::parse("test a_passed ... ok"), Counts::default());
    }

    #[test]
    fn a_failed_step_is_kept_and_the_next_one_runs() {
        let mut session = Session::default();
        assert!(!session.step("first", |_| bail!("it broke")));
        assert!(session.step("second", |counts| {
            counts.passed += 1;
            Ok(())
        }));
        assert_eq!(session.failures, ["first: it broke"]);
        assert!(session.end().is_err());
    }
}
