//! The program by which the controller asks for a packet's way, where words about it have to be the datapath's own. Run on
//! a question (`abi::WayQuestion`), never attached.

use crate::frame::XdpFrame;
use crate::maps::{AF_INET, KernelTables};
use crate::programs::ingress;
use crate::scratch::scratch;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{WayAnswer, WayQuestion, tend};
use forwarder_ebpf::frame::Frame;
use forwarder_ebpf::tables::{RouteQuery, Tables};
use zerocopy::{FromBytes, IntoBytes};

/// Puts the FIB's answer in the question's place; 1 when it has.
#[xdp]
pub fn way(ctx: XdpContext) -> u32 {
    u32::from(answer(&ctx).is_some())
}

#[inline(always)]
fn answer(ctx: &XdpContext) -> Option<()> {
    let mut frame = XdpFrame::<false>::new(ctx.ctx);
    let tables = KernelTables { ctx: ctx.ctx };
    let question = WayQuestion::read_from_bytes(frame.at::<{ size_of::<WayQuestion>() }>(tend::HEADER)?).ok()?;
    let WayQuestion { source, destination, protocol, .. } = question;
    let (ingress, tos) = (ingress(ctx), 0);
    let route = if question.family == 4 {
        let (source, destination) = (source.first_chunk()?, destination.first_chunk()?);
        tables.route4(&RouteQuery { ingress, source, destination, protocol, tos })
    } else {
        tables.route6(&RouteQuery { ingress, source: &source, destination: &destination, protocol, tos })
    };
    let asked = &scratch()?.fib;
    let family = if asked.family == AF_INET { 4 } else { 6 };
    // SAFETY: any bits of this member of the union are four words, and the kernel was given all of them.
    let next_hop = unsafe { asked.__bindgen_anon_4.ipv6_dst };
    let mut answer = WayAnswer {
        next_hop: [0; 16],
        family,
        fate: route.fate as u8,
        mtu: route.mtu.to_ne_bytes(),
        ifindex: route.ifindex.to_ne_bytes(),
        mac: route.mac,
        zero: [0; 2],
    };
    answer.next_hop.copy_from_slice(next_hop.as_bytes());
    *frame.at::<{ size_of::<WayAnswer>() }>(tend::HEADER)? = *answer.as_bytes().first_chunk()?;
    Some(())
}
