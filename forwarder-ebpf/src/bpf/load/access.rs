//! What memory itself costs: accesses to a table as large as the flow table, one after the other, at random.

use crate::maps::{CELLS, WALK};
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::LOAD_ACCESSES;

/// Visits cells as packets of flows in random order visit their entries: reads one, counts in it, and knows only then which
/// is next.
#[xdp]
pub fn access(_: XdpContext) -> u32 {
    let Some(pointer) = WALK.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: the value stays mapped, and one run at a time writes it; user space wrote it before the first.
    let walk = unsafe { &mut *pointer };
    let (flows, cells) = (u64::from(walk.flows), u64::from(walk.cells));
    let mut at = walk.at;
    let mut done = 0;
    while done < LOAD_ACCESSES {
        // Knuth's MMIX generator: the upper half is random enough.
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let flow = (at >> 32) * flows >> 32;
        let spread = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let Some(cell) = CELLS.get((spread * cells >> 32) as u32) else { return XDP_ABORTED };
        let [read, counted, ..] = cell;
        // Always 0, but the processor has to wait for it.
        at = at.wrapping_add(read.load());
        counted.add(1);
        done += 1;
    }
    walk.at = at;
    XDP_DROP
}
