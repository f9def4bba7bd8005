//! The guest's initramfs: busybox, the binary under test, the programs that drive it with the libraries they are
//! linked to, the kernel modules of the virtual devices, and `guest.sh` as its init.

use super::cpio::Archive;
use super::kernel::Kernel;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::exec;

/// Programs of this machine that the guest uses, all installed by `cargo xtask setup`.
const PROGRAMS: [&str; 3] = ["ip", "ethtool", "socat"];
/// Modules that the guest loads, in this order after what they need.
const MODULES: [&str; 1] = ["veth"];
/// The busybox applets that `guest.sh` calls.
const APPLETS: [&str; 18] = [
    "sh", "mount", "mkdir", "insmod", "ping", "sleep", "cat", "echo", "kill", "uname", "reboot", "tr", "timeout",
    "seq", "[", "test", "true", "date",
];

/// Builds the archive; `work` is a directory for intermediate files.
///
/// # Errors
/// When a file cannot be read, with its path.
pub fn build(kernel: &Kernel, forwarder: &Path, work: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc/forwarder", "proc", "run", "sys", "tmp", "modules"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", &read(&kernel.busybox)?);
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        let path = exec::on_path(program).into_iter().next();
        let path = path.with_context(|| format!("{program} is missing: run `cargo xtask setup`"))?;
        files.extend(libraries(&path)?);
        archive.file(&format!("bin/{program}"), &read(&path)?);
    }
    // The binary's debug information is of no use in the guest and larger than all the rest.
    let stripped = work.join("forwarder");
    exec::run(Command::new("strip").arg("-o").arg(&stripped).arg(forwarder))?;
    files.extend(libraries(forwarder)?);
    archive.file("bin/forwarder", &read(&stripped)?);
    for library in &files {
        let path = library.to_string_lossy();
        archive.file(path.trim_start_matches('/'), &read(library)?);
    }
    add_modules(&mut archive, kernel)?;
    archive.file("init", include_bytes!("guest.sh"));
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The shared libraries of a program, and its loader, at the paths where the loader looks for them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    Ok(parse_ldd(&exec::read(Command::new("ldd").arg(program))?))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(|path| PathBuf::from(path.trim_end_matches(':'))).collect()
}

/// Adds the modules as `modules/00-name.ko` and so on, so that their order in the directory is the order to load.
fn add_modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let mut order = Vec::new();
    for module in MODULES {
        resolve(kernel, module, &mut order)?;
    }
    for (index, (name, image)) in order.iter().enumerate() {
        archive.file(&format!("modules/{index:02}-{name}.ko"), image);
    }
    Ok(())
}

/// Appends a module's dependencies and then itself. What is not among the modules is built in.
fn resolve(kernel: &Kernel, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let Some(path) = find(&kernel.modules, &format!("{name}.ko")) else { return Ok(()) };
    let image = read(&path)?;
    for needed in dependencies(&image) {
        resolve(kernel, &needed, order)?;
    }
    order.push((name.to_string(), image));
    Ok(())
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<_> = directory.read_dir().ok()?.flatten().map(|entry| entry.path()).collect();
    entries
        .iter()
        .find(|path| {
            path.file_name().is_some_and(|own| own.to_string_lossy().replace('-', "_") == name.replace('-', "_"))
        })
        .cloned()
        .or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}

/// What a module says in its `.modinfo` that it depends on.
fn dependencies(image: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = image.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value: Vec<u8> = image[at + FIELD.len()..].iter().copied().take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&value).split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f0b)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0b)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f0b)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), expected);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(dependencies(b"..\0license=GPL\0depends=nfnetlink,libcrc32c\0name=nf"), ["nfnetlink", "libcrc32c"]);
        assert_eq!(dependencies(b"..\0depends=\0name=veth"), [""; 0]);
    }
}
