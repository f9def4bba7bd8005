//! The BPF object `load`: what `forwarder-bench` generates packets with, counts them with, and measures the
//! limits with.
//! For any other target there is nothing to build, see `../main.rs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![deny(clippy::undocumented_unsafe_blocks)]
#![cfg_attr(target_arch = "bpf", allow(missing_docs, reason = "the xdp macro makes functions that have none"))]
#![cfg_attr(target_arch = "bpf", expect(unsafe_code, reason = "packets and maps of the kernel; see the SAFETY notes"))]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod generate;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod sink;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is built for BPF only: run `cargo build --package forwarder-bench`");
}
