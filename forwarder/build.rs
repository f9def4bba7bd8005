//! Builds the BPF object and puts it at `OUT_DIR/datapath.o`, which the crate embeds. How it is built is
//! `xtask::build_ebpf`'s business.

use anyhow::{Context as _, Result};
use std::path::PathBuf;
use xtask::{build_ebpf, toolchain};

fn main() {
    for source in ["../forwarder-ebpf/src", "../forwarder-ebpf/Cargo.toml", "../Cargo.toml", "build.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    for variable in [toolchain::RUSTC_VARIABLE, toolchain::LINKER_VARIABLE, toolchain::TOOLS_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(error) = embed() {
        println!("cargo::error={error:#}");
        std::process::exit(1);
    }
}

fn embed() -> Result<()> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set: run by cargo only")?);
    let object = build_ebpf::build(&build_ebpf::target_directory(&out_dir))?;
    let embedded = out_dir.join("datapath.o");
    std::fs::copy(&object.path, &embedded)
        .with_context(|| format!("cannot copy {} to {}", object.path.display(), embedded.display()))?;
    if object.warnings > 0 {
        println!("cargo::warning=the datapath has {} warnings: `cargo xtask build-ebpf` shows them", object.warnings);
    }
    Ok(())
}
