//! The build of the BPF object: `cargo xtask build-ebpf`, and `forwarder/build.rs`, which embeds what it returns.
//!
//! It is a cargo inside a cargo. Invariants: it has a target directory of its own, because the outer cargo holds the
//! lock of its own one until we return; and it starts from an environment without what the outer cargo told its
//! build script or its wrapper, or it would compile for BPF with the host's flags.

use crate::toolchain::{Core, TARGET, Toolchain};
use crate::{exec, toolchain, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that holds the programs.
pub const PACKAGE: &str = "forwarder-ebpf";
/// Its binary that is the appliance's datapath.
pub const DATAPATH: &str = "datapath";
/// Its binary that is the benchmark's generator and sink.
pub const LOAD: &str = "load";

/// The object that came out.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it is.
    pub path: PathBuf,
    /// How many warnings the compiler gave on our own sources; they were printed.
    pub warnings: usize,
}

/// Finds a toolchain and builds one of the objects, the release profile, under `target_directory`.
///
/// # Errors
/// When no toolchain is found (one line with what to run) or cargo fails (its messages were printed).
pub fn build(binary: &str, target_directory: &Path) -> Result<Object> {
    let mut command = command(binary, &workspace(), target_directory, &toolchain::find()?);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start: {}", exec::display(&command)))?;
    let (path, warnings) = read_messages(binary, &String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        bail!("command failed ({}): {}", output.status, exec::display(&command));
    }
    let path = path.with_context(|| format!("no object came out of: {}", exec::display(&command)))?;
    Ok(Object { path, warnings })
}

/// Builds an object and puts it at `OUT_DIR/<binary>.o`, for the build script that calls.
///
/// # Errors
/// As [`build`], and when it cannot be copied.
pub fn embed(binary: &str) -> Result<()> {
    for source in ["../forwarder-ebpf/src", "../forwarder-ebpf/Cargo.toml", "../Cargo.toml", "build.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    for variable in [toolchain::RUSTC_VARIABLE, toolchain::LINKER_VARIABLE, toolchain::TOOLS_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set: run by cargo only")?);
    let object = build(binary, &self::target_directory(&out_dir))?;
    let embedded = out_dir.join(format!("{binary}.o"));
    std::fs::copy(&object.path, &embedded)
        .with_context(|| format!("cannot copy {} to {}", object.path.display(), embedded.display()))?;
    if object.warnings > 0 {
        println!("cargo::warning={binary} has {} warnings: `cargo xtask build-ebpf` shows them", object.warnings);
    }
    Ok(())
}

fn command(binary: &str, workspace: &Path, target_directory: &Path, toolchain: &Toolchain) -> Command {
    let compiler = &toolchain.compiler;
    let cargo = compiler.cargo.clone().or_else(|| std::env::var_os("CARGO").map(PathBuf::from));
    let mut command = Command::new(cargo.unwrap_or_else(|| PathBuf::from("cargo")));
    forget_outer_cargo(&mut command);
    command
        .current_dir(workspace)
        .env("RUSTC", &compiler.rustc)
        // aya-ebpf needs `asm_experimental_arch`, and `-Z build-std` needs a nightly cargo or this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain.linker).join("\u{1f}"))
        .args(["build", "--release", "--package", PACKAGE, "--bin", binary, "--target", TARGET])
        .arg("--target-dir")
        .arg(target_directory)
        .arg("--message-format=json");
    if compiler.core == Core::Source {
        command.arg("-Zbuild-std=core");
    }
    if workspace.join("Cargo.lock").is_file() {
        command.arg("--locked");
    }
    command
}

fn rustflags(linker: &Path) -> Vec<String> {
    let flags = [
        &format!("linker={}", linker.display()),
        // The line info and types that the verifier's log and `--btf` are made from.
        "debuginfo=2",
        "link-arg=--btf",
        // 32-bit jumps and arithmetic, as every kernel since 5.1 has them.
        "target-cpu=v3",
        // Header fields are read at any offset. x86-64 and arm64, which is all of EC2, read them in one load; without
        // this the back end makes byte loads of every one.
        "link-arg=--cpu-features=+allows-misaligned-mem-access",
    ];
    flags.iter().flat_map(|flag| ["-C".to_string(), (*flag).to_string()]).collect()
}

/// Takes from a command's environment what the cargo that runs us put there for us alone.
pub fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(confuses_cargo) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable of ours would mislead the inner cargo: what cargo sets for a build script and for `cargo run`,
/// and flags and compilers meant for the host. What says where cargo keeps and fetches things must stay, and so must
/// the job server, or two cargos would each take all cores.
fn confuses_cargo(name: &str) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_MAKEFLAGS",
        "CARGO_BUILD_JOBS",
    ];
    const HOST: [&str; 9] =
        ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTDOC", "TARGET", "HOST", "OUT_DIR", "OPT_LEVEL", "PROFILE", "DEBUG"];
    if name.starts_with("CARGO") {
        return !KEPT.iter().any(|kept| name.starts_with(kept));
    }
    // LD_LIBRARY_PATH: cargo points it at the host toolchain's libraries.
    HOST.contains(&name)
        || name == "LD_LIBRARY_PATH"
        || name == "RUSTC"
        || name.starts_with("RUSTC_")
        || name.starts_with("DEP_")
        || name == "RUSTUP_TOOLCHAIN"
}

/// The object's path and the number of warnings, from cargo's messages; what the compiler said is printed on the way.
fn read_messages(binary: &str, stdout: &str) -> (Option<PathBuf>, usize) {
    let (mut path, mut warnings) = (None, 0);
    for message in stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        match message["reason"].as_str() {
            Some("compiler-message") => {
                eprint!("{}", message["message"]["rendered"].as_str().unwrap_or_default());
                // The summary "3 warnings emitted" has no code and no place.
                let placed = message["message"]["spans"].as_array().is_some_and(|spans| !spans.is_empty());
                let warning = message["message"]["level"] == "warning";
                warnings += usize::from(warning && (placed || !message["message"]["code"].is_null()));
            }
            Some("compiler-artifact") if message["target"]["name"] == binary => {
                path = message["executable"].as_str().map(PathBuf::from).or(path);
            }
            _ => {}
        }
    }
    (path, warnings)
}

/// Where a build script shall put the inner cargo's target directory: beside the profiles of the outer one
/// (`target/bpf`), so that all profiles and `cargo xtask build-ebpf` share it, or in `OUT_DIR` when that lies
/// somewhere unexpected.
#[must_use]
pub fn target_directory(out_dir: &Path) -> PathBuf {
    let build = out_dir.ancestors().find(|ancestor| ancestor.file_name().is_some_and(|name| name == "build"));
    let target = build.and_then(|build| build.parent()?.parent());
    target.unwrap_or(out_dir).join("bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_outer_cargo_says_is_removed_and_what_the_user_says_stays() {
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER",
            "CARGO",
            "OUT_DIR",
        ] {
            assert!(confuses_cargo(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "PATH", "HOME", "HTTPS_PROXY", "RUSTUP_HOME"]
        {
            assert!(!confuses_cargo(name), "{name}");
        }
    }

    #[test]
    fn messages_give_the_object_and_count_warnings_once() {
        let stdout = r#"
{"reason":"compiler-message","message":{"rendered":"","level":"warning","code":{"code":"dead_code"},"spans":[{}]}}
{"reason":"compiler-message","message":{"rendered":"","level":"warning","code":null,"spans":[]}}
{"reason":"compiler-artifact","target":{"name":"aya_ebpf"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"datapath"},"executable":"/t/datapath"}
"#;
        assert_eq!(read_messages(DATAPATH, stdout), (Some(PathBuf::from("/t/datapath")), 1));
    }

    #[test]
    fn profiles_share_one_directory() {
        for out in ["/w/target/debug/build/forwarder-1/out", "/w/target/release/build/forwarder-2/out"] {
            assert_eq!(target_directory(Path::new(out)), Path::new("/w/target/bpf"));
        }
        assert_eq!(target_directory(Path::new("/elsewhere/out")), Path::new("/elsewhere/out/bpf"));
    }
}
