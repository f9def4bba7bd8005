//! The kernel's FIB (`bpf_fib_lookup`): how it is asked, and what its answers mean.

use crate::maps::KernelTables;
use crate::scratch::scratch;
use aya_ebpf::bindings::{self, bpf_fib_lookup as FibParams};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use forwarder_ebpf::tables::{Fate, Route};

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
pub fn fib_params(family: u8, ingress: u32, protocol: u8) -> Option<&'static mut FibParams> {
    let params = &mut scratch()?.fib;
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
