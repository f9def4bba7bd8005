//! The part of xtask that `forwarder/build.rs` needs as well: finding a toolchain for the BPF target, building the
//! datapath with it, and running commands so that a failure names the command.
//!
//! The verbs (`setup`, `test`, `tidy` and so on) belong to the binary, one file each.

pub mod build_ebpf;
pub mod exec;
pub mod toolchain;

use std::path::{Path, PathBuf};

/// The root of the source tree: the directory of the workspace's `Cargo.toml`.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one level below the workspace").to_path_buf()
}
