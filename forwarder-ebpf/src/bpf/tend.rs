//! Programs by which the controller changes the flow tables: it reads them in its own memory, but all that is written there
//! is written here, by the same code that packets run. Run on batches (`abi::tend`), never attached.

use crate::frame::XdpFrame;
use crate::maps::KernelTables;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{FlowKey4, FlowKey6, tend};
use forwarder_ebpf::flow_table::{forget_again, retire, vacate, watch};
use forwarder_ebpf::frame::Frame;
use forwarder_ebpf::wire::tcp_flags::ACK;
use zerocopy::FromBytes;

/// Calls `act` for every element of the batch; how often it said yes.
#[inline(always)]
fn each<T: FromBytes, const N: usize>(ctx: &XdpContext, act: impl Fn(&KernelTables, &T) -> bool) -> u32 {
    let mut frame = XdpFrame::<false>::new(ctx.ctx);
    let tables = KernelTables::new(ctx.ctx);
    let (mut index, mut done) = (0, 0);
    while index < tend::BATCH {
        let Some(bytes) = frame.at::<N>(tend::HEADER + index * N) else { break };
        let Ok(element) = T::read_from_bytes(bytes) else { break };
        if act(&tables, &element) {
            done += 1;
        }
        index += 1;
    }
    done
}

/// Retires entries by their keys.
#[xdp]
pub fn retire4(ctx: XdpContext) -> u32 {
    each::<FlowKey4, 16>(&ctx, |tables, key| retire(tables, key))
}

/// Retires entries by their keys.
#[xdp]
pub fn retire6(ctx: XdpContext) -> u32 {
    each::<FlowKey6, 40>(&ctx, |tables, key| retire(tables, key))
}

/// Vacates slots by their indexes.
#[xdp]
pub fn vacate4(ctx: XdpContext) -> u32 {
    each::<u32, 4>(&ctx, |tables, index| vacate::<FlowKey4, _>(tables, *index))
}

/// Vacates slots by their indexes.
#[xdp]
pub fn vacate6(ctx: XdpContext) -> u32 {
    each::<u32, 4>(&ctx, |tables, index| vacate::<FlowKey6, _>(tables, *index))
}

/// Has TCP entries, by their keys, look again where they stand in the sequence space.
#[xdp]
pub fn place4(ctx: XdpContext) -> u32 {
    each::<FlowKey4, 16>(&ctx, |tables, key| watch(tables, key, ACK))
}

/// Has TCP entries, by their keys, look again where they stand in the sequence space.
#[xdp]
pub fn place6(ctx: XdpContext) -> u32 {
    each::<FlowKey6, 40>(&ctx, |tables, key| watch(tables, key, ACK))
}

/// Has entries, by their indexes, forget that these TCP flags were seen again: flow logs have them.
#[xdp]
pub fn forget4(ctx: XdpContext) -> u32 {
    each::<[u32; 2], 8>(&ctx, |tables, flags| forget_again::<FlowKey4, _>(tables, *flags))
}

/// Has entries, by their indexes, forget that these TCP flags were seen again: flow logs have them.
#[xdp]
pub fn forget6(ctx: XdpContext) -> u32 {
    each::<[u32; 2], 8>(&ctx, |tables, flags| forget_again::<FlowKey6, _>(tables, *flags))
}
