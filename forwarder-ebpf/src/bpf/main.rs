//! The BPF object `datapath`. For any other target there is nothing to build, and cargo is content with an empty program:
//! so `cargo build --workspace` and clippy work everywhere.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![deny(clippy::undocumented_unsafe_blocks)]
#![cfg_attr(target_arch = "bpf", allow(missing_docs, reason = "the xdp macro makes functions that have none"))]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "the body that touches the kernel; see the SAFETY notes")
)]

#[cfg(target_arch = "bpf")]
mod fib;
#[cfg(target_arch = "bpf")]
mod firewall;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
mod scratch;
#[cfg(target_arch = "bpf")]
mod tend;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is built for BPF only: run `cargo xtask build-ebpf`");
}
