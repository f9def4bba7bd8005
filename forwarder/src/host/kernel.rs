//! What the process and the kernel must be for a datapath to be loaded at all.

use super::{HostError, Result};
use std::path::Path;

/// Where 5.18 comes from: BPF programs for XDP on frames in several buffers (jumbo frames), and with it everything
/// older that the datapath uses.
const OLDEST: (u32, u32) = (5, 18);

/// What the tests run on.
const OLDEST_TESTED: (u32, u32) = (6, 1);

/// Checks that the process may load programs and change sysctls.
///
/// # Errors
/// Without root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(HostError::NotRoot) }
}

/// Checks the kernel's version and that it describes its types (BTF). Says so in the log if the version is one that
/// nobody has tested.
///
/// # Errors
/// When the datapath cannot run on this kernel.
pub fn require_kernel() -> Result<()> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    let release = std::fs::read_to_string(path).map_err(|error| HostError::file("read", path, error))?;
    let release = release.trim();
    match parse_release(release) {
        None => return Err(HostError::Unexpected { path: path.to_owned(), text: release.to_owned() }),
        Some(version) if version < OLDEST => return Err(HostError::KernelTooOld { found: release.to_owned() }),
        Some(version) if version < OLDEST_TESTED => {
            tracing::warn!("kernel {release} should do, but forwarder is tested from 6.1 only");
        }
        Some(_) => {}
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() { Ok(()) } else { Err(HostError::NoBtf) }
}

/// Major and minor of a release such as `6.1.0-31-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, version) in [
            ("6.1.0-31-amd64", Some((6, 1))),
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.10-rc3", Some((5, 10))),
            ("7.0+", Some((7, 0))),
            ("Linux", None),
            ("", None),
        ] {
            assert_eq!(parse_release(release), version, "{release}");
        }
        assert!((5, 4) < OLDEST && (6, 0) > OLDEST);
    }

    #[test]
    fn this_kernel_will_do() {
        require_kernel().unwrap();
    }
}
