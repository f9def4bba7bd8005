//! `cargo xtask setup`: makes a fresh machine able to build and test. Looks first, says what it installs, then
//! installs; run again, it only looks.
//!
//! Installs: programs that tests and demo drive, a compiler for the BPF target and LLVM, all from the distribution
//! and only by apt; `bpf-linker` from crates.io into the tools directory. Without apt it names what is missing, with
//! the names that dnf knows. It never installs or changes a rustup toolchain.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use xtask::toolchain::{self, Compiler};
use xtask::{build_ebpf, exec, workspace};

/// The release that fits the compilers, see README "Building".
const BPF_LINKER: &str = "0.13.0";
/// The LLVM versions that release can be built with; the newest is the one Debian's `rustc-web` has as well.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// Debian's compiler with `core` for the BPF target.
const DEBIAN_COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// What to set up.
#[derive(clap::Args, Debug, Default)]
pub struct Args {
    /// Also what the test on kernel 6.1 needs (qemu).
    #[arg(long)]
    pub kernel: bool,
}

/// A program that must be in `PATH`, and the packages it comes in.
struct Program {
    name: &'static str,
    debian: &'static str,
    fedora: &'static str,
}

const fn program(name: &'static str, debian: &'static str, fedora: &'static str) -> Program {
    Program { name, debian, fedora }
}

/// What tests and demo drive.
const PROGRAMS: [Program; 18] = [
    program("cc", "gcc", "gcc"),
    program("nft", "nftables", "nftables"),
    program("iperf3", "iperf3", "iperf3"),
    program("nmap", "nmap", "nmap"),
    program("ethtool", "ethtool", "ethtool"),
    program("tcpdump", "tcpdump", "tcpdump"),
    program("conntrack", "conntrack", "conntrack-tools"),
    program("traceroute", "traceroute", "traceroute"),
    program("ping", "iputils-ping", "iputils"),
    program("tracepath", "iputils-tracepath", "iputils"),
    program("ip", "iproute2", "iproute"),
    program("curl", "curl", "curl"),
    program("turnserver", "coturn", "coturn"),
    program("dig", "dnsutils", "bind-utils"),
    program("socat", "socat", "socat"),
    program("python3", "python3", "python3"),
    program("tshark", "tshark", "wireshark-cli"),
    program("nsenter", "util-linux", "util-linux"),
];

/// What the test on kernel 6.1 needs besides.
const KERNEL_PROGRAMS: [Program; 1] = [program("qemu-system-x86_64", "qemu-system-x86", "qemu-system-x86-core")];

/// What reads flow logs in tests, from PyPI: programs that we did not write, and AWS's services on this machine.
const PYTHON_PACKAGES: [&str; 3] = ["flowlogs-reader==5.0.1", "moto[server,s3,logs]==5.2.5", "pyarrow==26.0.1"];

/// Installs what is missing.
///
/// # Errors
/// When something cannot be installed; the text names the command that failed or what to install by hand.
pub fn run(args: &Args) -> Result<()> {
    let mut wanted: Vec<&Program> = PROGRAMS.iter().collect();
    if args.kernel {
        wanted.extend(&KERNEL_PROGRAMS);
    }
    install_programs(&wanted)?;
    install_python_packages()?;
    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(_) => {
            install_linker(&usable_compiler()?)?;
            toolchain::find()?
        }
    };
    let compiler = &toolchain.compiler;
    println!(
        "setup: BPF compiler {} (Rust {}, LLVM {}), linker {}",
        compiler.rustc.display(),
        compiler.version,
        compiler.llvm,
        toolchain.linker.display()
    );
    Ok(())
}

/// A virtual environment among the tools, with what the tests of flow logs need.
fn install_python_packages() -> Result<()> {
    let root = toolchain::python_directory()?;
    let python = root.join("bin/python");
    let there = "import flowlogs_reader, moto.server, pyarrow.parquet";
    if exec::read(Command::new(&python).args(["-c", there])).is_ok() {
        return Ok(());
    }
    println!("setup: installing {} into {}", PYTHON_PACKAGES.join(", "), root.display());
    let venv = |command: &mut Command| exec::run(command.args(["-m", "venv", "--clear"]).arg(&root));
    if venv(&mut Command::new("python3")).is_err() {
        // Debian has the module in a package of its own.
        apt_install(&["python3-venv"])?;
        venv(&mut Command::new("python3"))?;
    }
    let mut pip = Command::new(&python);
    exec::run(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_PACKAGES))
}

fn install_programs(wanted: &[&Program]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|program| exec::on_path(program.name).is_empty()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let unique = |names: Vec<&'static str>| {
        names.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    if !has_apt() {
        let names: Vec<_> = missing.iter().map(|program| program.name).collect();
        let packages = unique(missing.iter().map(|program| program.fedora).collect());
        bail!("programs are missing: {}: install them, as with `dnf install {}`", names.join(", "), packages.join(" "));
    }
    apt_install(&unique(missing.iter().map(|program| program.debian).collect()))
}

/// A compiler that a linker can be built for: one that is there, or the distribution's, which is then installed.
fn usable_compiler() -> Result<Compiler> {
    let linkable = |compilers: Vec<Compiler>| compilers.into_iter().find(|compiler| llvm_can_be_had(compiler.llvm));
    if let Some(compiler) = linkable(toolchain::compilers()?) {
        return Ok(compiler);
    }
    if has_apt() {
        apt_refresh()?;
    }
    if !has_apt() || !DEBIAN_COMPILER.iter().all(|package| apt_knows(package)) {
        bail!(
            "no Rust compiler for {} with LLVM {} to {}: run `rustup toolchain install nightly --component rust-src`, \
             install the development files of its LLVM (dnf: llvm-devel), and run `cargo xtask setup` again",
            toolchain::TARGET,
            BPF_LINKER_LLVM.start(),
            BPF_LINKER_LLVM.end()
        );
    }
    apt_install(&DEBIAN_COMPILER)?;
    linkable(toolchain::compilers()?)
        .with_context(|| format!("{} is installed and still cannot compile for BPF", DEBIAN_COMPILER.join(" ")))
}

/// Builds `bpf-linker` for the LLVM of a compiler and puts it into the tools directory.
fn install_linker(compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm;
    let prefix = match llvm_prefix(llvm) {
        Some(prefix) => prefix,
        None => {
            apt_install(&[&format!("llvm-{llvm}-dev")])?;
            llvm_prefix(llvm)
                .with_context(|| format!("llvm-{llvm}-dev is installed, llvm-config is not to be found"))?
        }
    };
    let root = toolchain::linker_directory(llvm)?;
    println!("setup: installing bpf-linker {BPF_LINKER} for LLVM {llvm} into {} (a minute or two)", root.display());
    let mut cargo = Command::new("cargo");
    build_ebpf::forget_outer_cargo(&mut cargo);
    // From the root directory: no setting of this workspace is meant for a tool.
    cargo
        .current_dir("/")
        .env("LLVM_PREFIX", prefix)
        .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(&root);
    exec::run(&mut cargo)
}

fn llvm_can_be_had(llvm: u32) -> bool {
    BPF_LINKER_LLVM.contains(&llvm) && (llvm_prefix(llvm).is_some() || apt_knows(&format!("llvm-{llvm}-dev")))
}

/// Where LLVM's development files are, if they are.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let known = [format!("/usr/lib/llvm-{llvm}"), format!("/usr/lib64/llvm{llvm}"), "/usr".to_string()];
    let is_that = |config: &Path| {
        let version = exec::read(Command::new(config).arg("--version")).unwrap_or_default();
        version.split('.').next() == Some(&llvm.to_string())
    };
    known.into_iter().map(PathBuf::from).find(|prefix| is_that(&prefix.join("bin/llvm-config")))
}

fn has_apt() -> bool {
    !exec::on_path("apt-get").is_empty()
}

/// Whether apt could install a package, by the lists it has.
fn apt_knows(package: &str) -> bool {
    let mut policy = Command::new("apt-cache");
    let text = exec::read(policy.args(["policy", package]).env("LC_ALL", "C")).unwrap_or_default();
    text.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.ends_with("(none)"))
}

/// Brings apt's lists up to date, once: those of a fresh machine are as old as its image, and an old list names
/// versions that the archive no longer has.
fn apt_refresh() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        exec::run(as_root("apt-get").args(["update", "-qq"]))?;
        DONE.get_or_init(|| ());
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    println!("setup: installing from the distribution: {}", packages.join(" "));
    apt_refresh()?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    let mut apt = as_root("apt-get");
    exec::run(apt.args(install).args(packages).stdin(Stdio::null()))
        .context("apt could not install: see what it says above, or install the packages by hand")
}

/// A command run by root: as it is when we are, with sudo when not.
fn as_root(program: &str) -> Command {
    let mut command;
    if is_root() {
        command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
    } else {
        command = Command::new("sudo");
        command.args(["env", "DEBIAN_FRONTEND=noninteractive", program]);
    }
    command.current_dir(workspace());
    command
}

/// Whether we run as root, which the tests with network namespaces need.
#[must_use]
pub fn is_root() -> bool {
    exec::read(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_program_is_listed_twice() {
        let mut names: Vec<_> = PROGRAMS.iter().chain(&KERNEL_PROGRAMS).map(|program| program.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_package_that_does_not_exist_is_not_known() {
        assert!(!apt_knows("no-such-package-anywhere"));
        assert_eq!(llvm_prefix(1), None);
        assert!(!llvm_can_be_had(1));
    }
}
