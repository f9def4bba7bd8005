//! Where the compiler and the linker for the BPF target come from. Only looks; `cargo xtask setup` installs.
//!
//! | order | compiler | `core` comes from |
//! | --- | --- | --- |
//! | 1 | `FORWARDER_BPF_RUSTC` | whichever of the two it has; if it has none, that is an error, nothing else is tried |
//! | 2 | a rustup nightly with the component `rust-src` | `-Z build-std=core` |
//! | 3 | a distribution's `rustc` with `core` for the target | its package (Debian: `libstd-rust-web-dev-bpf`) |
//!
//! `bpf-linker` comes from `FORWARDER_BPF_LINKER`, the tools directory or `PATH`. It reads the bitcode that the
//! compiler writes, so its LLVM must be at least as new as the compiler's.

use crate::exec;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that the datapath is compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// Names the compiler to use, and no other.
pub const RUSTC_VARIABLE: &str = "FORWARDER_BPF_RUSTC";
/// Names the `bpf-linker` to use, and no other.
pub const LINKER_VARIABLE: &str = "FORWARDER_BPF_LINKER";
/// Names the directory for tools, instead of the one in the user's cache.
pub const TOOLS_VARIABLE: &str = "FORWARDER_TOOLS";
/// The minor version of Rust that the sources need, as `rust-version` in the workspace says.
pub const OLDEST_MINOR: u32 = 95;

/// Where a compiler takes `core` for the BPF target from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled and installed beside the compiler.
    Installed,
    /// Its source is there (`rust-src`): cargo compiles it with `-Z build-std=core`.
    Source,
}

/// A compiler that can compile for [`TARGET`].
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The `rustc` itself, no rustup proxy.
    pub rustc: PathBuf,
    /// The cargo of the same toolchain, where it must be that one: `build-std` only fits its own sources.
    pub cargo: Option<PathBuf>,
    /// Where `core` comes from.
    pub core: Core,
    /// The Rust version, as `rustc` prints it.
    pub version: String,
    /// The major version of its LLVM.
    pub llvm: u32,
}

/// All that a build of the datapath needs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// A `bpf-linker` whose LLVM suits the compiler.
    pub linker: PathBuf,
}

/// Finds a compiler and a linker that suits it.
///
/// # Errors
/// One line that names what is missing and what to run.
pub fn find() -> Result<Toolchain> {
    let compilers = compilers()?;
    let first = compilers.first().with_context(|| {
        format!(
            "no Rust compiler for {TARGET}, neither a nightly with rust-src nor a distribution's rustc with core for it: \
             run `cargo xtask setup`, or `rustup toolchain install nightly --component rust-src`, or set {RUSTC_VARIABLE}"
        )
    })?;
    let oldest = compilers.iter().map(|compiler| compiler.llvm).min().unwrap_or(first.llvm);
    let found = compilers
        .iter()
        .find_map(|compiler| Some(Toolchain { compiler: compiler.clone(), linker: find_linker(compiler.llvm).ok()? }));
    found.map_or_else(|| Err(find_linker(oldest).expect_err("no compiler has a linker")), Ok)
}

/// Every compiler for [`TARGET`] in the order of the table above, perhaps none.
///
/// # Errors
/// When `FORWARDER_BPF_RUSTC` names one that cannot do it; one line with the reason.
pub fn compilers() -> Result<Vec<Compiler>> {
    if let Some(rustc) = std::env::var_os(RUSTC_VARIABLE) {
        let compiler = examine(Path::new(&rustc))
            .with_context(|| format!("{RUSTC_VARIABLE}={} cannot be used", rustc.display()))
            .map_err(one_line)?;
        return Ok(vec![compiler]);
    }
    let mut candidates: Vec<_> = nightlies().iter().map(|sysroot| sysroot.join("bin/rustc")).collect();
    candidates.extend(exec::on_path("rustc"));
    candidates.push(PathBuf::from("/usr/bin/rustc"));
    let mut compilers: Vec<Compiler> = Vec::new();
    for compiler in candidates.iter().filter_map(|rustc| examine(rustc).ok()) {
        if compilers.iter().all(|known| known.rustc != compiler.rustc) {
            compilers.push(compiler);
        }
    }
    Ok(compilers)
}

/// Finds a `bpf-linker` that starts and whose LLVM is at least `llvm`.
///
/// # Errors
/// One line that names what is missing and what to run.
pub fn find_linker(llvm: u32) -> Result<PathBuf> {
    if let Some(linker) = std::env::var_os(LINKER_VARIABLE) {
        let linker = PathBuf::from(linker);
        suits(&linker, llvm)
            .with_context(|| format!("{LINKER_VARIABLE}={} cannot be used", linker.display()))
            .map_err(one_line)?;
        return Ok(linker);
    }
    let mut candidates = vec![linker_directory(llvm)?.join("bin/bpf-linker")];
    candidates.extend(exec::on_path("bpf-linker"));
    candidates.into_iter().find(|linker| suits(linker, llvm).is_ok()).with_context(|| {
        format!(
            "no bpf-linker with LLVM {llvm} or newer, in {} or in PATH: run `cargo xtask setup`, or set {LINKER_VARIABLE}",
            tools_directory().map(|d| d.display().to_string()).unwrap_or_default()
        )
    })
}

/// The directory for tools, outside the source tree: `$FORWARDER_TOOLS`, or `forwarder/tools` in the user's cache.
///
/// # Errors
/// When none of `FORWARDER_TOOLS`, `XDG_CACHE_HOME` and `HOME` is set.
pub fn tools_directory() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(TOOLS_VARIABLE)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("forwarder/tools")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/forwarder/tools")))
        .with_context(|| format!("no place for tools: set {TOOLS_VARIABLE} or HOME"))
}

/// Where `setup` installs the Python packages that read flow logs in tests.
///
/// # Errors
/// As [`tools_directory`].
pub fn python_directory() -> Result<PathBuf> {
    Ok(tools_directory()?.join("flow-logs"))
}

/// Where `setup` installs the `bpf-linker` for an LLVM: one directory a major version, so that a new compiler does
/// not meet an old linker.
///
/// # Errors
/// As [`tools_directory`].
pub fn linker_directory(llvm: u32) -> Result<PathBuf> {
    Ok(tools_directory()?.join(format!("bpf-linker-llvm-{llvm}")))
}

/// The sysroots of rustup's nightlies, newest name first; none without rustup.
fn nightlies() -> Vec<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    let Some(Ok(entries)) = home.map(|home| home.join("toolchains").read_dir()) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    // `nightly-x86_64-…`, which rustup keeps up to date, sorts after every `nightly-2026-…`.
    found.reverse();
    found
}

/// What a compiler can do for the BPF target; an error says why it cannot be used.
fn examine(rustc: &Path) -> Result<Compiler> {
    let about = exec::read(Command::new(rustc).env_remove("RUSTC_WRAPPER").arg("-vV"))?;
    let (version, minor, llvm) = parse_version(&about)?;
    ensure!(minor >= OLDEST_MINOR, "it is Rust {version}, the sources need 1.{OLDEST_MINOR}");
    let printed = exec::read(Command::new(rustc).args(["--print", "sysroot"]))?;
    let sysroot = PathBuf::from(printed.trim_end());
    let installed = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let rustc = rustc.to_path_buf();
    if has_core(&installed) {
        return Ok(Compiler { rustc, cargo: None, core: Core::Installed, version, llvm });
    }
    ensure!(
        sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file(),
        "it has neither core for {TARGET} nor the component rust-src"
    );
    let cargo = Some(sysroot.join("bin/cargo")).filter(|cargo| cargo.is_file());
    Ok(Compiler { rustc: sysroot.join("bin/rustc"), cargo, core: Core::Source, version, llvm })
}

fn has_core(directory: &Path) -> bool {
    let Ok(mut entries) = directory.read_dir() else { return false };
    entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
}

/// Version, its minor number, and LLVM's major number, from `rustc -vV`.
fn parse_version(about: &str) -> Result<(String, u32, u32)> {
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let version = field("release:").context("rustc -vV names no release")?;
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    let llvm = field("LLVM version:").and_then(|llvm| llvm.split('.').next()?.parse().ok());
    Ok((
        version.to_string(),
        minor.with_context(|| format!("rustc names the strange release {version}"))?,
        llvm.context("rustc has no LLVM, which alone compiles for BPF")?,
    ))
}

/// An error when the linker does not start or is linked to an older LLVM than `llvm`.
fn suits(linker: &Path, llvm: u32) -> Result<()> {
    let version = exec::read(Command::new(linker).arg("--version"))?;
    ensure!(version.starts_with("bpf-linker"), "it is no bpf-linker");
    let image = std::fs::read(linker).with_context(|| format!("cannot read {}", linker.display()))?;
    match linked_llvm(&image) {
        Some(own) if own < llvm => bail!("it has LLVM {own}, the compiler has {llvm}"),
        // None: linked statically; then nothing but a build tells.
        _ => Ok(()),
    }
}

/// The major version in the name of the LLVM library that an ELF image asks for.
fn linked_llvm(image: &[u8]) -> Option<u32> {
    ["libLLVM.so.", "libLLVM-"].iter().find_map(|name| {
        let at = image.windows(name.len()).position(|window| window == name.as_bytes())?;
        let digits: Vec<u8> = image[at + name.len()..].iter().copied().take_while(u8::is_ascii_digit).collect();
        String::from_utf8(digits).ok()?.parse().ok()
    })
}

/// An error and its causes as one line, which is all that a build script can show.
fn one_line(error: anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n\
                         LLVM version: 22.1.8\n";

    #[test]
    fn versions_are_read() {
        let (version, minor, llvm) = parse_version(ABOUT).expect("a real compiler's text");
        assert_eq!((version.as_str(), minor, llvm), ("1.96.0", 96, 22));
        assert!(parse_version("release: 1.96.0\n").is_err(), "cranelift has no BPF");
    }

    #[test]
    fn the_linked_llvm_is_read_from_the_image() {
        assert_eq!(linked_llvm(b"\x7fELF..\0libLLVM.so.22.1\0libc"), Some(22));
        assert_eq!(linked_llvm(b"\x7fELF..\0libLLVM-19.so.1\0libc"), Some(19));
        assert_eq!(linked_llvm(b"\x7fELF..\0libc.so.6\0"), None);
    }

    #[test]
    fn a_compiler_without_core_is_refused_with_the_reason() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let rustc = home.path().join("rustc");
        let script =
            format!("#!/bin/sh\ncase $1 in -vV) printf '{ABOUT}';; *) echo {};; esac\n", home.path().display());
        std::fs::write(&rustc, script).expect("writes");
        std::fs::set_permissions(&rustc, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let error = examine(&rustc).expect_err("an empty sysroot");
        assert!(error.to_string().contains("rust-src"), "{error}");

        let core = home.path().join("lib/rustlib/bpfel-unknown-none/lib");
        std::fs::create_dir_all(&core).expect("mkdir");
        std::fs::write(core.join("libcore-1.rlib"), "").expect("writes");
        assert_eq!(examine(&rustc).expect("core is there").core, Core::Installed);
    }
}
