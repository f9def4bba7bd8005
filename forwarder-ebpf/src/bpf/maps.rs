//! The maps, and `Tables` over them.
//!
//! Concurrency: any CPU may run any program at any time. Flow entries are shared and all that changes in them is atomic; how
//! they come and go stands in `flow_table`. Configuration is written by the controller alone.
//! Per-CPU values belong to the running program: XDP programs are not preempted by one another on a CPU.

use crate::fib::{NO_ROUTE, fib_params, words};
use crate::firewall::{self, KernelPolicy};
use crate::frame::opaque;
use crate::scratch::{level, scratch};
use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, xdp_md};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use forwarder_ebpf::abi::firewall::{RuleEvent, SourceCell, Unanswered};
use forwarder_ebpf::abi::{
    Birth, Control, Counter, DWELL_BUCKETS, FlowEntry, FlowKey, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6,
    FragmentOwner4, FragmentOwner6, HANDSHAKES as HANDSHAKE_CELLS, HELD_FRAME_BYTES, HELD_RING_BYTES, Handshake,
    HeldFrame, IfaceConfig, LEVELS, MAX_FRAGMENT_TRAINS, MAX_IFACES, MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatRule,
    OUTCOMES, Shape, SharedU64, Slot, Ticks, Used,
};
use forwarder_ebpf::flow_table::{self, Slots};
use forwarder_ebpf::tables::{Answer, Asked, FlowTable, FragmentTable, Judged, Refused, Route, RouteQuery, Tables};
use forwarder_ebpf::verdict::STAGES as STAGE_COUNT;
use forwarder_ebpf::wire::ipv4::Packet4;
use forwarder_ebpf::wire::ipv6::Packet6;

/// Address families as the kernel numbers them (linux/socket.h).
pub const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// The controller sizes the flow tables, their blocks and IFACES when it loads the object; the numbers here are
// placeholders. It reads the flow tables, and reads and writes the blocks, in its own memory.
#[map]
static FLOWS4: Array<Slot<FlowKey4>> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<Slot<FlowKey6>> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static BIRTHS4: Array<Birth> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static BIRTHS6: Array<Birth> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static SHAPES: Array<Shape> = Array::with_max_entries(2, 0);
#[map]
static USED: Array<Used> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static BLOCKS4: Array<SharedU64> = Array::with_max_entries(1 << 5, BPF_F_MMAPABLE);
#[map]
static BLOCKS6: Array<SharedU64> = Array::with_max_entries(1 << 5, BPF_F_MMAPABLE);
#[map]
static FRAGMENTS4: LruHashMap<FragmentKey4, FragmentOwner4> = LruHashMap::with_max_entries(MAX_FRAGMENT_TRAINS, 0);
#[map]
static FRAGMENTS6: LruHashMap<FragmentKey6, FragmentOwner6> = LruHashMap::with_max_entries(MAX_FRAGMENT_TRAINS, 0);
#[map]
static HANDSHAKES: Array<Handshake> = Array::with_max_entries(HANDSHAKE_CELLS, BPF_F_MMAPABLE);
#[map]
static IFACES: Array<IfaceConfig> = Array::with_max_entries(1 << 12, 0);
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
static NAT_RULES: Array<NatRule> = Array::with_max_entries(2 * MAX_NAT_RULES, 0);
#[map]
static NAT_ADDRESSES: Array<[u8; 4]> = Array::with_max_entries(2 * MAX_NAT_ADDRESSES, 0);
#[map]
static HOST_PORTS: Array<u64> = Array::with_max_entries(1024, 0);
#[map]
pub static DEVICES: DevMap = DevMap::with_max_entries(MAX_IFACES, 0);
#[map]
pub static STAGES: ProgramArray = ProgramArray::with_max_entries(STAGE_COUNT, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(MAX_IFACES * OUTCOMES, 0);
#[map]
pub static DWELL: PerCpuArray<u64> = PerCpuArray::with_max_entries(DWELL_BUCKETS, 0);
#[map]
static PACKET4: PerCpuArray<Packet4> = PerCpuArray::with_max_entries(LEVELS, 0);
#[map]
static PACKET6: PerCpuArray<Packet6> = PerCpuArray::with_max_entries(LEVELS, 0);
#[map]
static HELD: RingBuf = RingBuf::with_byte_size(HELD_RING_BYTES, 0);

/// The tables, as seen by the program that was called with this context.
pub struct KernelTables {
    /// The program's context: routes are looked up for it.
    pub ctx: *mut xdp_md,
    /// Whose memory the program uses.
    pub level: u32,
}

impl KernelTables {
    /// Those of `ctx`, which must be the context that the kernel called the program with.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx, level: level(ctx) }
    }
}

macro_rules! flow_table {
    ($key:ty, $map:ident, $births:ident, $blocks:ident) => {
        impl Slots<$key> for KernelTables {
            type Slot<'s> = &'s Slot<$key>;

            #[inline(always)]
            fn shape(&self) -> Option<&Shape> {
                SHAPES.get(<$key>::FAMILY as u32)
            }

            #[inline(always)]
            fn used(&self) -> Option<&Used> {
                USED.get(<$key>::FAMILY as u32)
            }

            #[inline(always)]
            fn slot(&self, index: u32) -> Option<&Slot<$key>> {
                $map.get(index)
            }

            #[inline(always)]
            fn birth(&self, index: u32) -> Option<&Birth> {
                $births.get(index)
            }

            #[inline(always)]
            fn blocks(&self, word: u32) -> Option<&SharedU64> {
                $blocks.get(word)
            }
        }

        impl FlowTable<$key> for KernelTables {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<&FlowEntry> {
                flow_table::find(self, key).map(|slot| &slot.entry)
            }

            #[inline(always)]
            fn expect_flow(&self, key: &$key) {
                flow_table::expect(self, key);
            }

            #[inline(always)]
            fn flow_nearby(&self, key: &$key) -> Option<&FlowEntry> {
                flow_table::find_nearby(self, key).map(|slot| &slot.entry)
            }

            #[inline(always)]
            fn hash(&self, key: &$key) -> u64 {
                match Slots::<$key>::shape(self) {
                    Some(shape) => key.hash(shape),
                    None => 0,
                }
            }

            #[inline(always)]
            fn birth(&self, key: &$key) -> Option<&Birth> {
                flow_table::find_birth(self, key)
            }

            #[inline(always)]
            fn insert_flow(&self, key: &$key, entry: &FlowEntry, birth: &Birth) -> Result<(), Refused> {
                flow_table::insert(self, key, entry, birth)
            }

            #[inline(always)]
            fn remove_flow(&self, key: &$key) {
                // Somebody else may have been faster; then it is gone as well.
                flow_table::retire(self, key);
            }
        }
    };
}

flow_table!(FlowKey4, FLOWS4, BIRTHS4, BLOCKS4);
flow_table!(FlowKey6, FLOWS6, BIRTHS6, BLOCKS6);

macro_rules! fragment_table {
    ($key:ty, $owner:ty, $map:ident) => {
        impl FragmentTable<$key, $owner> for KernelTables {
            #[inline(always)]
            fn remember(&self, key: &$key, owner: &$owner) {
                // Without room the train's later fragments are dropped under their own reason.
                let _ = $map.insert(key, owner, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn owner(&self, key: &$key) -> Option<$owner> {
                let pointer = $map.get_ptr(key)?;
                // SAFETY: as for flow entries; it is plain data and copied out at once.
                Some(unsafe { *pointer })
            }
        }
    };
}

fragment_table!(FragmentKey4, FragmentOwner4, FRAGMENTS4);
fragment_table!(FragmentKey6, FragmentOwner6, FRAGMENTS6);

impl Tables for KernelTables {
    type Packet4 = &'static mut Packet4;
    type Packet6 = &'static mut Packet6;
    type Policy = KernelPolicy;
    type Asked = &'static Asked;

    #[inline(always)]
    fn packet4(&self) -> Option<&'static mut Packet4> {
        let pointer = PACKET4.get_ptr_mut(self.level)?;
        // SAFETY: as for `packet6`.
        Some(unsafe { &mut *pointer })
    }

    #[inline(always)]
    fn packet6(&self) -> Option<&'static mut Packet6> {
        let pointer = PACKET6.get_ptr_mut(self.level)?;
        // SAFETY: the kernel gave the pointer to this CPU's copy of the value, whose zeros to begin with are a valid packet;
        // no other program of this level runs on this CPU before this one ends, and each program asks once.
        Some(unsafe { &mut *pointer })
    }

    #[inline(always)]
    fn iface(&self, ifindex: u32) -> Option<&IfaceConfig> {
        IFACES.get(ifindex)
    }

    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }

    #[inline(always)]
    fn nat_rule(&self, index: u32) -> Option<&NatRule> {
        NAT_RULES.get(index)
    }

    #[inline(always)]
    fn nat_address(&self, index: u32) -> Option<[u8; 4]> {
        NAT_ADDRESSES.get(index).copied()
    }

    #[inline(always)]
    fn host_ports(&self, word: u32) -> u64 {
        HOST_PORTS.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn route4(&self, query: &RouteQuery<'_, [u8; 4]>) -> Route {
        let Some(params) = fib_params(self.level, AF_INET, query.ingress, query.protocol) else { return NO_ROUTE };
        params.__bindgen_anon_2.flowinfo = u32::from_ne_bytes([query.tos, 0, 0, 0]);
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(*query.source);
        params.__bindgen_anon_4.ipv6_dst = [u32::from_ne_bytes(*query.destination), 0, 0, 0];
        self.look_up(params)
    }

    #[inline(always)]
    fn route6(&self, query: &RouteQuery<'_, [u8; 16]>) -> Route {
        let Some(params) = fib_params(self.level, AF_INET6, query.ingress, query.protocol) else { return NO_ROUTE };
        // The traffic class stands in the flow information's upper bits (RFC 8200 §3).
        params.__bindgen_anon_2.flowinfo = (u32::from(query.tos) << 20).to_be();
        params.__bindgen_anon_3.ipv6_src = words(query.source);
        params.__bindgen_anon_4.ipv6_dst = words(query.destination);
        self.look_up(params)
    }

    #[inline(always)]
    fn hold(&self, ingress: u32) -> bool {
        // SAFETY: the context is the program's own.
        let length = unsafe { bpf_xdp_get_buff_len(self.ctx) } as u32;
        if length == 0 || length > HELD_FRAME_BYTES as u32 {
            return false;
        }
        // Said again so that kernel 6.1's verifier follows: from 1 to the size of the array, a power of two.
        let length = (opaque(length as usize - 1) as u32 & (HELD_FRAME_BYTES as u32 - 1)) + 1;
        let Some(params) = scratch(self.level).map(|scratch| &scratch.fib) else { return false };
        // SAFETY: the kernel has put the gateway, if there is one, in place of the destination; any bits are an address.
        let next_hop = unsafe { params.__bindgen_anon_4.ipv6_dst };
        let Some(mut record) = HELD.reserve::<HeldFrame>(0) else { return false };
        let pointer = record.as_mut_ptr();
        // SAFETY: the record is ours until it is submitted and large enough for its type; the verifier checks that
        // `length` bytes fit the array. Bytes behind `length` keep older frames' contents, which only the controller sees.
        let failed = unsafe {
            (*pointer).ingress = ingress;
            (*pointer).egress = params.ifindex;
            (*pointer).family = if params.family == AF_INET6 { 6 } else { 4 };
            (*pointer).next_hop = next_hop;
            (*pointer).length = length;
            bpf_xdp_load_bytes(self.ctx, 0, (&raw mut (*pointer).frame).cast(), length)
        };
        if failed != 0 {
            record.discard(0);
            return false;
        }
        record.submit(0);
        true
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing and only returns a number.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn handshake(&self, index: u32) -> Option<&Handshake> {
        HANDSHAKES.get(index)
    }

    #[inline(always)]
    fn clock_us(&self) -> u32 {
        // SAFETY: takes nothing and only returns a number.
        (unsafe { bpf_ktime_get_ns() } / 1000) as u32
    }

    #[inline(always)]
    fn set_answer(&self, answer: Answer) {
        if let Some(scratch) = scratch(self.level) {
            scratch.answer = answer;
            scratch.has_answer = 1;
        }
    }

    #[inline(always)]
    fn policy(&self) -> Option<KernelPolicy> {
        KernelPolicy::find()
    }

    #[inline(always)]
    fn unanswered(&self, group: u32) -> Option<&Unanswered> {
        firewall::unanswered(group)
    }

    #[inline(always)]
    fn source_cell(&self, cell: u32) -> Option<&SourceCell> {
        firewall::source_cell(cell)
    }

    #[inline(always)]
    fn source_past(&self, cell: u32) -> u32 {
        firewall::source_past(cell)
    }

    #[inline(always)]
    fn set_asked(&self, asked: &Asked) {
        firewall::set_asked(self.level, asked);
    }

    #[inline(always)]
    fn asked(&self) -> Option<&'static Asked> {
        firewall::asked(self.level)
    }

    #[inline(always)]
    fn count_rule(&self, counter: u16, bytes: u32, now: Ticks) {
        firewall::count_rule(counter, bytes, now);
    }

    #[inline(always)]
    fn log_rule(&self, event: &RuleEvent, now: Ticks, control: &Control) {
        firewall::log_rule(self.level, event, now, control);
    }

    #[inline(always)]
    fn set_judged(&self, judged: Judged) {
        firewall::set_judged(self.level, judged);
    }

    #[inline(always)]
    fn judged(&self) -> Judged {
        firewall::judged(self.level)
    }

    #[inline(always)]
    fn answer(&self) -> Option<Answer> {
        let scratch = scratch(self.level)?;
        (scratch.has_answer != 0).then_some(scratch.answer)
    }

    #[inline(always)]
    fn take_icmp_token(&self, now: Ticks, control: &Control) -> bool {
        let Some(scratch) = scratch(self.level) else { return false };
        if now.wrapping_sub(scratch.tokens_since) >= control.ticks_per_second
            || scratch.tokens > control.icmp_per_second
        {
            scratch.tokens_since = now;
            scratch.tokens = control.icmp_per_second;
        }
        if scratch.tokens == 0 {
            return false;
        }
        scratch.tokens -= 1;
        true
    }
}
