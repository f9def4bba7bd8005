//! The kernel's FIB (`bpf_fib_lookup`): how it is asked, and what its answers mean.

use crate::frame::XdpFrame;
use crate::maps::{AF_INET, KernelTables};
use crate::programs::ingress;
use crate::scratch::scratch;
use aya_ebpf::bindings::{self, bpf_fib_lookup as FibParams};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{FibAnswer, FibQuestion, tend};
use forwarder_ebpf::frame::Frame;
use forwarder_ebpf::tables::{Fate, Route, RouteQuery, Tables};
use zerocopy::{FromBytes, IntoBytes};

/// Where there is no memory to ask the FIB with, which cannot be.
pub const NO_ROUTE: Route = Route { fate: Fate::NotForwarded, ifindex: 0, mac: [0; 6], mtu: 0 };

/// An IPv6 address as the kernel's words.
#[inline(always)]
pub fn words(address: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// This CPU's FIB question, with everything set but addresses and class. `tot_len` is 0, so that the kernel tells the
/// route's MTU instead of comparing with it.
#[inline(always)]
pub fn fib_params(level: u32, family: u8, ingress: u32, protocol: u8) -> Option<&'static mut FibParams> {
    let params = &mut scratch(level)?.fib;
    params.family = family;
    params.l4_protocol = protocol;
    params.sport = 0;
    params.dport = 0;
    params.__bindgen_anon_1.tot_len = 0;
    params.ifindex = ingress;
    params.__bindgen_anon_5 = bindings::bpf_fib_lookup__bindgen_ty_5 { tbid: 0 };
    Some(params)
}

impl KernelTables {
    /// Asks.
    #[inline(always)]
    pub fn look_up(&self, params: &mut FibParams) -> Route {
        // SAFETY: the context is the program's own, and `params` is initialised and of the size given.
        let code = unsafe { bpf_fib_lookup(self.ctx.cast(), params, size_of::<FibParams>() as i32, 0) };
        let fate = match code as u32 {
            bindings::BPF_FIB_LKUP_RET_SUCCESS => Fate::Forward,
            bindings::BPF_FIB_LKUP_RET_NO_NEIGH => Fate::NoNeighbour,
            bindings::BPF_FIB_LKUP_RET_BLACKHOLE => Fate::Blackhole,
            bindings::BPF_FIB_LKUP_RET_UNREACHABLE => Fate::Unreachable,
            bindings::BPF_FIB_LKUP_RET_PROHIBIT => Fate::Prohibited,
            bindings::BPF_FIB_LKUP_RET_FWD_DISABLED => Fate::Disabled,
            _ => Fate::NotForwarded,
        };
        // SAFETY: any bits of this member of the union are a number.
        let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
        Route { fate, ifindex: params.ifindex, mac: params.dmac, mtu }
    }
}

/// Puts the FIB's answer in the question's place, for who explains; 1 when it has. Run by the controller, never attached.
#[xdp]
pub fn fib(ctx: XdpContext) -> u32 {
    u32::from(answer(&ctx).is_some())
}

#[inline(always)]
fn answer(ctx: &XdpContext) -> Option<()> {
    let mut frame = XdpFrame::<false>::new(ctx.ctx);
    let tables = KernelTables::new(ctx.ctx);
    let question = FibQuestion::read_from_bytes(frame.at::<{ size_of::<FibQuestion>() }>(tend::HEADER)?).ok()?;
    let FibQuestion { source, destination, protocol, .. } = question;
    let (ingress, tos) = (ingress(ctx), 0);
    let route = if question.family == 4 {
        let (source, destination) = (source.first_chunk()?, destination.first_chunk()?);
        tables.route4(&RouteQuery { ingress, source, destination, protocol, tos })
    } else {
        tables.route6(&RouteQuery { ingress, source: &source, destination: &destination, protocol, tos })
    };
    let asked = &scratch(tables.level)?.fib;
    let family = if asked.family == AF_INET { 4 } else { 6 };
    // SAFETY: any bits of this member of the union are four words, and the kernel was given all of them.
    let next_hop = unsafe { asked.__bindgen_anon_4.ipv6_dst };
    let mut answer = FibAnswer {
        next_hop: [0; 16],
        family,
        fate: route.fate as u8,
        mtu: route.mtu.to_ne_bytes(),
        ifindex: route.ifindex.to_ne_bytes(),
        mac: route.mac,
        zero: [0; 2],
    };
    answer.next_hop.copy_from_slice(next_hop.as_bytes());
    *frame.at::<{ size_of::<FibAnswer>() }>(tend::HEADER)? = *answer.as_bytes().first_chunk()?;
    Some(())
}
