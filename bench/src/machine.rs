//! The machine that was measured: all that has to be known to judge a figure or to repeat it. Read from /proc, /sys and
//! tools that are there; nothing is asked over the network (on EC2 the instance type stands in the DMI tables).

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Load average above which others are at work: figures are then theirs, too.
const IDLE: f64 = 0.5;

/// A machine. What cannot be found out is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that may be used.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Vendor and product: "Amazon EC2 c7gn.large".
    pub product: String,
    /// Whether it is a virtual machine, as far as the CPU tells.
    pub virtual_machine: bool,
    /// Frequency governor of the first CPU.
    pub governor: String,
    /// Load average of the last minute when the run began.
    pub load: f64,
    /// Its network interfaces that are no software.
    pub interfaces: Vec<Interface>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// Its version, as ethtool tells.
    pub version: String,
    /// Receive queues.
    pub rx_queues: usize,
    /// Transmit queues.
    pub tx_queues: usize,
    /// How XDP runs on it: "native", "generic", "offloaded"; empty when it does not.
    pub xdp: String,
}

impl Machine {
    /// This machine, now.
    pub fn read() -> Self {
        let cpuinfo = text("/proc/cpuinfo");
        let field = |name| field(&cpuinfo, name).map(str::to_owned);
        Self {
            // ARM's cpuinfo has numbers only; lscpu knows their names.
            cpu: field("model name")
                .or_else(|| self::field(&output("lscpu", &[]), "Model name").map(str::to_owned))
                .unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: self::field(&text("/proc/meminfo"), "MemTotal")
                .and_then(|total| total.trim_end_matches(" kB").parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: text("/proc/sys/kernel/osrelease"),
            product: [text("/sys/class/dmi/id/sys_vendor"), text("/sys/class/dmi/id/product_name")]
                .join(" ")
                .trim()
                .to_owned(),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            load: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            interfaces: hardware().iter().map(|name| Interface::read(name)).collect(),
        }
    }

    /// What makes its figures doubtful, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.load > IDLE {
            warnings.push(format!("the machine was not idle: load average {:.2} at the beginning", self.load));
        }
        if !["", "performance"].contains(&self.governor.as_str()) {
            warnings
                .push(format!("the frequency governor is `{}`: clocks rise only while it is measured", self.governor));
        }
        warnings
    }

    /// In one line.
    pub fn line(&self) -> String {
        let virtual_machine = if self.virtual_machine { ", virtual machine" } else { "" };
        let product = if self.product.is_empty() { String::new() } else { format!("{}, ", self.product) };
        let Self { cpu, cpus, memory_mib, kernel, .. } = self;
        format!("{product}{cpu}, {cpus} CPUs{virtual_machine}, {memory_mib} MiB, Linux {kernel}")
    }
}

impl Interface {
    fn read(name: &str) -> Self {
        let directory = Path::new("/sys/class/net").join(name);
        let driver = fs::read_link(directory.join("device/driver")).unwrap_or_default();
        let queues =
            |prefix: &str| names(&directory.join("queues")).iter().filter(|name| name.starts_with(prefix)).count();
        Self {
            name: name.to_owned(),
            driver: driver.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            version: field(&output("ethtool", &["-i", name]), "version").unwrap_or_default().to_owned(),
            rx_queues: queues("rx-"),
            tx_queues: queues("tx-"),
            xdp: xdp_mode(&output("ip", &["-j", "link", "show", "dev", name])).to_owned(),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Self { name, driver, version, rx_queues, tx_queues, xdp } = self;
        let xdp = if xdp.is_empty() { String::new() } else { format!(", XDP {xdp}") };
        format!("{name}: {driver} {version}, {rx_queues} receive and {tx_queues} transmit queues{xdp}")
    }
}

/// How XDP runs, out of `ip -j link`; the numbers are `XDP_ATTACHED_*` (linux/if_link.h).
fn xdp_mode(json: &str) -> &'static str {
    let links: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    match links[0]["xdp"]["mode"].as_u64() {
        Some(1) => "native",
        Some(2) => "generic",
        Some(3) => "offloaded",
        Some(4) => "several",
        _ => "",
    }
}

/// Interfaces with a device behind them.
fn hardware() -> Vec<String> {
    let mut names = names(Path::new("/sys/class/net"));
    names.retain(|name| Path::new("/sys/class/net").join(name).join("device").exists());
    names.sort();
    names
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A file's text, trimmed; empty when it is not there.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What a tool says; empty when it is not there or fails.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The value in the first line `name: value`.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.trim(), value.trim())).find(|(this, _)| *this == name).map(|(_, value)| value)
}

/// The commit of the source tree that this program was built from; "-dirty" when it is not as committed.
pub fn commit() -> String {
    // Run with sudo, the tree is somebody else's, which git has to be told is fine.
    let tree = env!("CARGO_MANIFEST_DIR");
    let described =
        output("git", &["-c", "safe.directory=*", "-C", tree, "describe", "--always", "--dirty", "--abbrev=12"]);
    let described = described.trim();
    if described.is_empty() { "unknown".to_owned() } else { described.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 1\nmodel name\t: AMD EPYC\nflags : fpu hypervisor\n";
        assert_eq!(field(text, "model name"), Some("AMD EPYC"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn the_xdp_mode_is_read_from_what_ip_says() {
        assert_eq!(xdp_mode(r#"[{"ifname":"ens5","xdp":{"mode":1,"prog":{"id":7}}}]"#), "native");
        assert_eq!(xdp_mode(r#"[{"ifname":"ens5"}]"#), "");
        assert_eq!(xdp_mode(""), "");
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let idle = Machine { load: 0.1, governor: "performance".into(), ..Machine::default() };
        assert!(idle.warnings().is_empty());
        let busy = Machine { load: 1.5, governor: "powersave".into(), ..Machine::default() };
        assert_eq!(busy.warnings().len(), 2);
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::read();
        assert!(machine.cpus > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
