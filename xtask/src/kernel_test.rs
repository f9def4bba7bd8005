//! `cargo xtask test --kernel 6.1`: Debian's 6.1 kernel, in qemu, loads the datapath and passes packets both ways.
//!
//! Software emulation, so it tells nothing about speed. The guest is an initramfs with the `forwarder` binary, the few
//! programs it is driven with and their libraries; nothing is installed on this machine. The guest makes client,
//! appliance and server out of namespaces (`guest.sh`) and reports on its console, one `PASS` or `FAIL` a line,
//! `STATUS` with what `forwarder status --json` says, and `RECORD`s of its flow logs; the verdict on the counters is made
//! here, that on the records in `clock`.

mod clock;
mod cpio;
mod image;
mod kernel;

use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use xtask::exec;

/// From power on to power off; takes some 30 s when all is well.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// Guest memory in MiB: the unpacked initramfs, and flow tables of the size that the guest's config asks for.
const MEMORY_MIB: u32 = 1024;
/// What the guest prints last.
const END: &str = "END";

/// Boots the kernel and runs the binary in it.
///
/// # Errors
/// When something cannot be fetched or built, when a check in the guest fails, or after 180 s.
pub fn run(version: &str, forwarder: &Path) -> Result<()> {
    setup::run(&setup::Args { kernel: true })?;
    let kernel = kernel::fetch(version)?;
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;
    let initramfs = work.path().join("initramfs");
    std::fs::write(&initramfs, image::build(&kernel, forwarder, work.path())?).context("cannot write the initramfs")?;
    println!("kernel test: booting {} in qemu", kernel.release);
    let console = boot(&kernel.image, &initramfs)?;
    judge(&console)?;
    clock::judge(&console)
}

/// Boots and returns the console's lines, which are also printed.
fn boot(image: &Path, initramfs: &Path) -> Result<Vec<String>> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-no-reboot", "-nic", "none"])
        // Not -nographic: with it the BIOS writes to the console as well.
        .args(["-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"])
        .args(["-m", &MEMORY_MIB.to_string(), "-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut guest = qemu.spawn().with_context(|| format!("cannot start: {}", exec::display(&qemu)))?;
    let output = guest.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + TIME_LIMIT;
    let console = listen(&receiver, deadline);
    let in_time = Instant::now() < deadline;
    // The guest powers itself off; after the time limit it is switched off.
    if !in_time {
        guest.kill().context("cannot stop qemu")?;
    }
    guest.wait().context("cannot wait for qemu")?;
    ensure!(in_time, "the guest was not done after {} s: its console is above", TIME_LIMIT.as_secs());
    Ok(console)
}

/// The lines until the console is closed or time is up.
fn listen(receiver: &mpsc::Receiver<String>, deadline: Instant) -> Vec<String> {
    let mut lines = Vec::new();
    while let Ok(line) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("  {line}");
        lines.push(line);
    }
    lines
}

/// Success when the guest came to its end, nothing failed and the counters agree.
fn judge(console: &[String]) -> Result<()> {
    let failed: Vec<_> = console.iter().filter(|line| line.starts_with("FAIL")).map(String::as_str).collect();
    if !failed.is_empty() {
        bail!("kernel test: {}", failed.join("; "));
    }
    ensure!(
        console.iter().any(|line| line == END),
        "kernel test: the guest stopped before its end, see its console above"
    );
    let status = console.iter().find_map(|line| line.strip_prefix("STATUS ")).context("kernel test: no STATUS line")?;
    let status: Value = serde_json::from_str(status).context("kernel test: the status is not JSON")?;
    for interface in ["in0", "out0"] {
        let count = |direction: &str| packets(&status, interface, direction);
        let (came, went) = (count("in")?, count("out")?);
        ensure!(came > 0 && went > 0, "kernel test: {interface} counted {came} packets in and {went} out");
        println!("kernel test: {interface} counted {came} packets in and {went} out");
    }
    println!("kernel test: {} checks passed", console.iter().filter(|line| line.starts_with("PASS")).count());
    Ok(())
}

/// A packet counter of `forwarder status --json`.
fn packets(status: &Value, interface: &str, direction: &str) -> Result<u64> {
    let interfaces = status["interfaces"].as_array().context("kernel test: the status lists no interfaces")?;
    let entry = interfaces.iter().find(|entry| entry["name"] == interface);
    let entry = entry.with_context(|| format!("kernel test: the status does not list {interface}"))?;
    let path = format!("/{direction}/packets");
    entry.pointer(&path).and_then(Value::as_u64).with_context(|| format!("kernel test: no {path} in {entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Vec<String> {
        text.lines().map(str::to_string).collect()
    }

    const STATUS: &str = r#"STATUS {"interfaces":[{"name":"in0","in":{"packets":3},"out":{"packets":2}},{"name":"out0","in":{"packets":2},"out":{"packets":3}}]}"#;

    #[test]
    fn a_guest_that_passed_everything_passes() {
        judge(&console(&format!("PASS ping\n{STATUS}\nEND"))).expect("all is well");
    }

    #[test]
    fn one_failure_or_an_early_end_fails() {
        let error = judge(&console(&format!("PASS ping\nFAIL tcp\n{STATUS}\nEND"))).expect_err("tcp failed");
        assert_eq!(error.to_string(), "kernel test: FAIL tcp");
        assert!(judge(&console(&format!("PASS ping\n{STATUS}"))).is_err(), "no end");
        assert!(judge(&console("PASS ping\nEND")).is_err(), "no status");
    }

    #[test]
    fn a_counter_at_zero_fails() {
        assert!(judge(&console(&format!("{}\nEND", STATUS.replace("\"packets\":3", "\"packets\":0")))).is_err());
    }
}
