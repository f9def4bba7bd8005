//! Ctrl-C in the middle: values are not dropped then, so a parent that does nothing else removes by name what is left.
//!
//! The show runs in a child of this process. A thread cannot do the same inside it: signals that a thread waits for have
//! to be blocked, and programs inherit what is blocked.

use crate::netns;
use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the show may take to end, and then its programs.
const LIMIT: Duration = Duration::from_secs(30);
/// Somebody has had enough.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// First argument of the child.
pub const INNER: &str = "--inner";

/// Runs the show with the same arguments and returns its exit code; SIGINT, SIGTERM and SIGHUP end it and all it made.
/// `put_right` is called at its end, however that came: for what is no namespace's own.
///
/// # Errors
/// When the child cannot be started.
pub fn run(put_right: impl Fn() + Clone + Send + 'static) -> Result<ExitCode> {
    // Its programs are ours when it is gone: a terminal's Ctrl-C ends the show before we are told.
    set_child_subreaper(true).context("cannot take over what the show leaves")?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    // What the show keeps in temporary files, which may be large, goes with it.
    let files = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut command = Command::new(std::env::current_exe().context("cannot find the own executable")?);
    command.arg(INNER).args(std::env::args().skip(1)).env("TMPDIR", files.path());
    let mut child = command.spawn().context("cannot start the show")?;
    let id = child.id();
    let (put_right_then, directory) = (put_right.clone(), files.path().to_owned());
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\ninterrupted, cleaning up");
            end(id);
            netns::remove_leftovers(id);
            put_right_then();
            // Nothing can be done about what does not go, and it is only in the way.
            let _ = std::fs::remove_dir_all(directory);
            std::process::exit(130);
        }
    });
    let status = child.wait().context("cannot wait for the show")?;
    if status.code().is_none() {
        // A signal ended it; if that was Ctrl-C, the thread above ends this process after it has cleaned up.
        std::thread::sleep(Duration::from_secs(1));
        if INTERRUPTED.load(Ordering::Relaxed) {
            std::thread::sleep(3 * LIMIT);
        }
    }
    netns::remove_leftovers(id);
    put_right();
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// In the child: signals are for it and its programs again.
///
/// # Errors
/// When the kernel refuses.
pub fn unblock() -> Result<()> {
    SigSet::all().thread_unblock().context("cannot unblock signals")
}

/// Ends the show, then its programs, and gives the forwarder time to put the host right.
fn end(show: u32) {
    // What the show has open is in use until it is gone, and tables of a million connections take their time.
    send(Signal::SIGKILL, show);
    // As long as one of its threads is left, its programs are not ours.
    wait_until_gone(|| !std::path::Path::new(&format!("/proc/{show}")).exists());
    children_of(std::process::id()).into_iter().for_each(|program| send(Signal::SIGTERM, program));
    wait_until_gone(|| children_of(std::process::id()).is_empty());
}

fn send(signal: Signal, process: u32) {
    // It may have ended by itself meanwhile.
    let _ = kill(Pid::from_raw(process.cast_signed()), signal);
}

fn wait_until_gone(is_gone: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_gone() && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Those that still run.
fn children_of(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // pid (name, which may hold anything) state parent …
        let mut words = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let runs = words.next().is_some_and(|state| state != "Z");
        if runs && words.next().and_then(|word| word.parse().ok()) == Some(parent) {
            children.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    }
    children
}
