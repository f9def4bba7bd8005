//! Network namespaces for the unit tests of this module. They need root.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A namespace with its loopback up, deleted when dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fwu{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// `ip -n NAME …`, arguments split at white space.
    pub fn ip(&self, arguments: &str) -> String {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Joins two namespaces by an Ethernet of two ends, both up.
    pub fn join(&self, own: &str, other: &Self, its: &str) {
        self.ip(&format!("link add {own} type veth peer name {its} netns {}", other.name));
        self.ip(&format!("link set {own} up"));
        other.ip(&format!("link set {its} up"));
    }

    /// Runs a closure inside, on a thread of its own: the tests' own threads never change their namespace.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let entered = || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            inside()
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future inside, on a runtime of that thread.
    pub fn block_on<T: Send>(&self, inside: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(inside())
        })
    }

    /// Every sysctl under /proc/sys/net with its value, but for those that cannot be read.
    pub fn sysctls(&self) -> Vec<(String, String)> {
        fn walk(at: &std::path::Path, into: &mut Vec<(String, String)>) {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into);
                } else if let Ok(value) = std::fs::read_to_string(&path) {
                    into.push((path.display().to_string(), value.trim().to_owned()));
                }
            }
        }
        self.enter(|| {
            let mut all = Vec::new();
            walk("/proc/sys/net".as_ref(), &mut all);
            all.sort();
            all
        })
    }

    /// A sysctl by its path under /proc/sys/net.
    pub fn sysctl(&self, path: &str) -> String {
        self.enter(|| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned())
    }

    pub fn set_sysctl(&self, path: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Fails only when somebody else has deleted it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (namespaces need root): {said}");
    String::from_utf8(output.stdout).unwrap()
}
