//! How much memory the forwarder may count on. Since Linux 5.11 BPF maps are charged to the control group of the
//! process that makes them, so a group's limit counts as the machine's memory does.

use super::{HostError, Result};
use std::path::{Component, Path};

/// The machine's memory in bytes (`MemTotal`), or the limit of this process's control group (version 2, `memory.max` of
/// the group and of every group above) where that is less.
///
/// # Errors
/// When /proc/meminfo cannot be read or understood. A control group that cannot be read is no limit.
pub fn memory_bytes() -> Result<u64> {
    let path = Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).map_err(|error| HostError::file("read", path, error))?;
    let total = parse_total(&text).ok_or_else(|| {
        let text = text.lines().next().unwrap_or_default().to_owned();
        HostError::Unexpected { path: path.to_owned(), text }
    })?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = parse_group(&groups).and_then(|group| read_limit(Path::new("/sys/fs/cgroup"), group));
    Ok(limit.map_or(total, |limit| limit.min(total)))
}

/// Bytes from `MemTotal:  1014612 kB`.
fn parse_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The group in the unified hierarchy: what follows `0::/`.
fn parse_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The least limit in bytes of a group and those above it, up to `root`.
fn read_limit(root: &Path, group: &str) -> Option<u64> {
    let group = Path::new(group);
    // A process in another cgroup namespace sees its group as `/../..`; there is no telling where that is.
    if group.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    let limit_of = |group: &Path| -> Option<u64> {
        // `max` is no number, and no limit.
        std::fs::read_to_string(root.join(group).join("memory.max")).ok()?.trim().parse().ok()
    };
    group.ancestors().filter_map(limit_of).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals() {
        let text = "MemTotal:       24684092 kB\nMemFree:        22448432 kB\n";
        assert_eq!(parse_total(text), Some(24_684_092 * 1024));
        for text in ["", "MemFree: 1 kB", "MemTotal: many kB", "MemTotal: 1 MB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(parse_total(text), None, "{text}");
        }
    }

    #[test]
    fn the_least_limit_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/forwarder.service");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(read_limit(root.path(), "system.slice/forwarder.service"), None);
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(read_limit(root.path(), "system.slice/forwarder.service"), None);
        std::fs::write(inner.join("memory.max"), "5000\n").unwrap();
        std::fs::write(root.path().join("system.slice/memory.max"), "4000\n").unwrap();
        assert_eq!(read_limit(root.path(), "system.slice/forwarder.service"), Some(4000));
        assert_eq!(read_limit(root.path(), ""), None);
        assert_eq!(read_limit(&inner, "../"), None);
    }

    #[test]
    fn groups() {
        assert_eq!(parse_group("1:memory:/old\n0::/system.slice/x\n"), Some("system.slice/x"));
        assert_eq!(parse_group("0::/\n"), Some(""));
        assert_eq!(parse_group("1:memory:/old\n"), None);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory_bytes().unwrap() > 64 << 20);
    }
}
