//! Kernel and busybox for the guest, from Debian's archive: fetched with apt, unpacked into the tools directory, never
//! installed. What is there is used again without asking the archive.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::{exec, toolchain};

/// A kernel and its guest's shell.
pub struct Kernel {
    /// As `uname -r` will print it.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The directory with its modules.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// Fetches a kernel of a version such as `6.1`, and busybox.
///
/// # Errors
/// When the machine has no apt, or its archive no such kernel, or cannot be reached.
pub fn fetch(version: &str) -> Result<Kernel> {
    ensure!(std::env::consts::ARCH == "x86_64", "the kernel test runs on x86-64 only");
    let directory = toolchain::tools_directory()?.join("kernel");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let busybox = unpack(&directory, "busybox-static")?.join("bin/busybox");
    let package = match unpacked(&directory, version)? {
        Some(package) => package,
        None => newest(version)?,
    };
    let root = unpack(&directory, &package)?;
    let release = package.trim_start_matches("linux-image-").to_string();
    Ok(Kernel {
        image: root.join("boot").join(format!("vmlinuz-{release}")),
        modules: root.join("lib/modules").join(&release),
        busybox,
        release,
    })
}

/// Whether a package is the cloud kernel of that version, `linux-image-6.1.0-56-cloud-amd64` for 6.1.
fn is_kernel(package: &str, version: &str) -> bool {
    let middle = package.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix("-cloud-amd64"));
    middle.is_some_and(|release| release.starts_with(&format!("{version}.")))
}

fn unpacked(directory: &Path, version: &str) -> Result<Option<String>> {
    let entries = directory.read_dir().with_context(|| format!("cannot read {}", directory.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| is_kernel(name, version)).max())
}

/// The newest kernel package of that version which the archive has: the one behind `linux-image-cloud-amd64` where
/// that is the version.
fn newest(version: &str) -> Result<String> {
    let behind = exec::read(Command::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]))
        .context("the kernel test takes its kernel from Debian's archive, by apt")?;
    let known = exec::read(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{version}.")]))?;
    let package = behind.split_whitespace().chain(known.split_whitespace()).find(|name| is_kernel(name, version));
    let Some(package) = package else {
        bail!("apt knows no package linux-image-{version}.*-cloud-amd64: run `apt-get update`, or use Debian 12");
    };
    Ok(package.to_string())
}

/// The directory with a package's files; fetches and unpacks it if it is not there.
fn unpack(directory: &Path, package: &str) -> Result<PathBuf> {
    let root = directory.join(package);
    if root.is_dir() {
        return Ok(root);
    }
    println!("kernel test: fetching {package} into {}", directory.display());
    let work = tempfile::tempdir_in(directory).context("cannot make a temporary directory")?;
    exec::run(
        Command::new("apt-get")
            .args(["download", "--quiet", "-o", "APT::Sandbox::User=", package])
            .current_dir(work.path()),
    )?;
    let archive = work.path().read_dir().context("cannot read the temporary directory")?.flatten().next();
    let archive = archive.with_context(|| format!("apt-get download {package} left no file"))?.path();
    let files = work.path().join("files");
    exec::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&files))?;
    // Last, so that a directory with the final name is always whole.
    std::fs::rename(&files, &root).with_context(|| format!("cannot rename to {}", root.display()))?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cloud_kernel_of_that_version_will_do() {
        assert!(is_kernel("linux-image-6.1.0-56-cloud-amd64", "6.1"));
        for other in [
            "linux-image-6.12.1-1-cloud-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-cloud-amd64",
        ] {
            assert!(!is_kernel(other, "6.1"), "{other}");
        }
    }
}
