//! Builds the BPF object and puts it at `OUT_DIR/datapath.o`, which the crate embeds. How it is built is
//! `xtask::build_ebpf`'s business.

fn main() {
    if let Err(error) = xtask::build_ebpf::embed(xtask::build_ebpf::DATAPATH) {
        println!("cargo::error={error:#}");
        std::process::exit(1);
    }
}
