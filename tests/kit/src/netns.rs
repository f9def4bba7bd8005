//! One network namespace: made, entered, removed. Names are `fw<pid>-<n>-<role>`, so nothing collides and leftovers of a
//! killed test can be told.

use crate::run::{Running, run};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A number that no other value of this process has.
pub(crate) fn unique() -> String {
    format!("fw{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removes what a process that has ended made and did not drop: namespaces, state directories, pins. For one that was
/// interrupted; everybody else drops values. Its children have to be ended first.
pub fn remove_leftovers(process: u32) {
    let prefix = format!("fw{process}-");
    for directory in ["/run/netns", "/sys/fs/bpf", "/run"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(&prefix) {
                continue;
            }
            // Nothing can be done about what does not go, and nobody is left to be told.
            let _ = match directory {
                "/run/netns" => run(Command::new("ip").args(["netns", "del", &name])).map(drop),
                _ => std::fs::remove_dir_all(entry.path()).map_err(Into::into),
            };
        }
    }
}

/// A network namespace of our own, deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up and duplicate address detection off; `role` ends its name.
    ///
    /// # Errors
    /// Without root, or when `ip` is missing.
    pub fn new(role: &str) -> Result<Self> {
        let name = format!("{}-{role}", unique());
        run(Command::new("ip").args(["netns", "add", &name])).context("namespaces need root")?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        netns.set_sysctls(&[("net.ipv6.conf.all.accept_dad", "0"), ("net.ipv6.conf.default.accept_dad", "0")])?;
        Ok(netns)
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside, with the host's file system, /sys and /run.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program inside to its end; the arguments are one line split at white space.
    ///
    /// # Errors
    /// See [`run`].
    pub fn run(&self, program: &str, arguments: &str) -> Result<String> {
        run(self.command(program).args(arguments.split_whitespace()))
    }

    /// Starts a program inside; the arguments are one line split at white space.
    ///
    /// # Errors
    /// See [`Running::start`].
    pub fn spawn(&self, program: &str, arguments: &str) -> Result<Running> {
        Running::start(self.command(program).args(arguments.split_whitespace()))
    }

    /// `ip -n NAME ...`; the arguments are one line split at white space.
    ///
    /// # Errors
    /// See [`run`].
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Runs a closure on a thread of its own inside. Sockets and threads made there stay inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the closure's own. Its panic goes on here.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("cannot open namespace {}", self.name))?;
        let entered = || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            inside()
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The value of a sysctl, written with dots as `sysctl` does (so not for interfaces with a dot in their name).
    ///
    /// # Errors
    /// When there is no such sysctl.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        self.enter(|| {
            let value =
                std::fs::read_to_string(sysctl_path(key)).with_context(|| format!("cannot read sysctl {key}"))?;
            Ok(value.trim().to_owned())
        })
    }

    /// Sets sysctls.
    ///
    /// # Errors
    /// When there is no such sysctl or it refuses the value.
    pub fn set_sysctls(&self, sysctls: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            sysctls.iter().try_for_each(|(key, value)| {
                std::fs::write(sysctl_path(key), value).with_context(|| format!("cannot set sysctl {key} to {value}"))
            })
        })
    }

    /// Every readable sysctl under `net.` as (path, value), to compare before and after.
    ///
    /// # Errors
    /// When /proc/sys/net cannot be read.
    pub fn sysctls(&self) -> Result<Vec<(String, String)>> {
        fn walk(at: &std::path::Path, into: &mut Vec<(String, String)>) -> Result<()> {
            for entry in std::fs::read_dir(at)? {
                let path = entry?.path();
                if path.is_dir() {
                    walk(&path, into)?;
                } else if let Ok(value) = std::fs::read_to_string(&path) {
                    into.push((path.display().to_string(), value.trim().to_owned()));
                }
            }
            Ok(())
        }
        self.enter(|| {
            let mut all = Vec::new();
            walk("/proc/sys/net".as_ref(), &mut all).context("cannot read /proc/sys/net")?;
            all.sort();
            Ok(all)
        })
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.replace('.', "/"))
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Fails only when somebody else has deleted it.
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}
