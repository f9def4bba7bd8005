//! Ctrl-C in the middle: values are not dropped then, so a parent that does nothing else removes by name what is left.
//!
//! The show runs in a child of this process. A thread cannot do the same inside it: signals that a thread waits for have
//! to be blocked, and programs inherit what is blocked.

use crate::netns;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// First argument of the child.
pub const INNER: &str = "--inner";

/// Runs the show with the same arguments and returns its exit code; SIGINT, SIGTERM and SIGHUP end it and all it made.
/// `put_right` is called at its end, however that came: for what is no namespace's own.
///
/// # Errors
/// When the child cannot be started.
pub fn run(put_right: impl Fn() + Clone + Send + 'static) -> Result<ExitCode> {
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
    let (interrupted, directory) = (put_right.clone(), files.path().to_owned());
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("\ninterrupted, cleaning up");
            end(id);
            netns::remove_leftovers(id);
            interrupted();
            // Nothing can be done about what does not go, and it is only in the way.
            let _ = std::fs::remove_dir_all(directory);
            std::process::exit(130);
        }
    });
    let status = child.wait().context("cannot wait for the show")?;
    if status.code().is_none() {
        // A signal ended it; if that was Ctrl-C, the thread above ends this process after it has cleaned up.
        std::thread::sleep(Duration::from_secs(5));
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
fn end(id: u32) {
    let programs = children_of(id);
    // What the show has open is in use until it is gone, and tables of a million connections take their time.
    send(Signal::SIGKILL, &[id]);
    wait_for_end(&[id], Duration::from_secs(30));
    send(Signal::SIGTERM, &programs);
    wait_for_end(&programs, Duration::from_secs(2));
}

fn send(signal: Signal, processes: &[u32]) {
    for id in processes {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(id.cast_signed()), signal);
    }
}

fn wait_for_end(processes: &[u32], limit: Duration) {
    let begun = Instant::now();
    let is_there = |id: &u32| std::path::Path::new(&format!("/proc/{id}")).exists();
    while processes.iter().any(is_there) && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // pid (name, which may hold anything) state parent …
        let found = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if found == Some(parent) {
            children.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    }
    children
}
