//! Refused packets, counted by their ends for flow logs: behind the verdict, in programs of their own, so that neither the
//! fast path nor the stages pay for it.
//!
//! The stage that refused has left the packet in the CPU's memory, and the verdict in its scratch.

use crate::frame::XdpFrame;
use crate::maps::{KernelTables, STAGES};
use crate::programs::{clock_of_arrival, count, ingress, now, send};
use crate::scratch::scratch;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{
    Counter, FlowKey4, FlowKey6, MAX_REFUSED, Refused, RefusedBy, Refusing, Ticks, logged_flags,
};
use forwarder_ebpf::frame::Frame;
use forwarder_ebpf::tables::Tables;
use forwarder_ebpf::verdict::{Drop, Stage, Verdict};
use forwarder_ebpf::wire::{ETHERNET, protocol, take};

#[map]
static REFUSING: Array<Refusing> = Array::with_max_entries(1, 0);
#[map]
static REFUSED4: HashMap<FlowKey4, Refused> = HashMap::with_max_entries(MAX_REFUSED, 0);
#[map]
static REFUSED6: HashMap<FlowKey6, Refused> = HashMap::with_max_entries(MAX_REFUSED, 0);
#[map]
static REFUSED_LOST: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1, 0);

/// What a stage leaves for the program that counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Refusal {
    /// Number of the `Drop`.
    reason: u8,
    /// The frame has become an answer to its sender.
    answered: u8,
    /// Firewall rule that refused it, 0 for none.
    rule: u16,
    /// Number of the outcome.
    outcome: u32,
    /// The frame as it came, bytes.
    length: u32,
}

/// Has a packet that `stage` refused counted, where that is wanted. Returns when it is not.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, level: u32, (stage, verdict): (Stage, Verdict), length: u32) {
    let (reason, answered) = match verdict {
        Verdict::Drop(reason) => (reason, 0),
        Verdict::Answered(reason) => (reason, 1),
        _ => return,
    };
    if !matches!(REFUSING.get(0), Some(refusing) if refusing.wanted != 0) {
        return;
    }
    let Some(scratch) = scratch(level) else { return };
    // What a rule let through may be dropped for another reason; that is not the rule's doing.
    let by_rule = matches!(reason, Drop::Policy | Drop::Rejected | Drop::HostPolicy | Drop::Bogon);
    let rule = if by_rule { scratch.judged.rule } else { 0 };
    scratch.refusal = Refusal { reason: reason as u8, answered, rule, outcome: reason.outcome(), length };
    let next = match stage {
        Stage::Flow4 | Stage::New4 | Stage::Related4 | Stage::Firewall4 | Stage::Match4 => Stage::Refused4,
        Stage::Refuse4 | Stage::Reset4 | Stage::Answer4 | Stage::Refused4 => Stage::Refused4,
        Stage::Flow6 | Stage::New6 | Stage::Related6 | Stage::Firewall6 | Stage::Match6 => Stage::Refused6,
        Stage::Refuse6 | Stage::Reset6 | Stage::Answer6 | Stage::Refused6 => Stage::Refused6,
    };
    // SAFETY: as in `programs::hand_over`.
    unsafe { STAGES.tail_call(ctx, next as u32) };
}

/// A packet, as far as it is counted.
struct Counted<K> {
    key: K,
    bytes: u64,
    tcp_flags: u32,
}

/// An IPv4 packet that was refused.
#[xdp(frags)]
pub fn refused4(ctx: XdpContext) -> u32 {
    finish(&ctx, |tables, frame, refusal, by| {
        let Counted { mut key, bytes, tcp_flags } = match is_read(refusal) {
            true => read4(tables)?,
            false => unread4(frame, refusal)?,
        };
        key.zero = by.pack();
        note(&REFUSED4, &key, &Refused::one(bytes, tcp_flags, now(), refusal.rule));
        Some(())
    })
}

/// An IPv6 packet that was refused.
#[xdp(frags)]
pub fn refused6(ctx: XdpContext) -> u32 {
    finish(&ctx, |tables, frame, refusal, by| {
        let Counted { mut key, bytes, tcp_flags } = match is_read(refusal) {
            true => read6(tables)?,
            false => unread6(frame, refusal)?,
        };
        key.zero = by.pack();
        note(&REFUSED6, &key, &Refused::one(bytes, tcp_flags, now(), refusal.rule));
        Some(())
    })
}

/// Counts as `note` says, and ends the frame.
#[inline(always)]
fn finish(
    ctx: &XdpContext,
    note: impl Fn(&KernelTables, &mut XdpFrame<true>, &Refusal, RefusedBy) -> Option<()>,
) -> u32 {
    let (tables, mut frame) = (KernelTables::new(ctx.ctx), XdpFrame::<true>::new(ctx.ctx));
    let (Some(iface), Some(scratch)) = (tables.iface(ingress(ctx)), scratch(tables.level)) else { return XDP_PASS };
    let refusal = scratch.refusal;
    let bank = match REFUSING.get(0) {
        Some(refusing) => refusing.bank as u8 & 1,
        None => 0,
    };
    let by = RefusedBy { slot: iface.slot, bank, reason: refusal.reason };
    if note(&tables, &mut frame, &refusal, by).is_none() {
        lose(u64::from(refusal.length));
    }
    count(iface, refusal.outcome, refusal.length, clock_of_arrival(tables.level));
    if refusal.answered != 0 { send(iface.slot) } else { XDP_DROP }
}

/// The packet was taken apart before it was refused, and is in the CPU's memory.
#[inline(always)]
fn is_read(refusal: &Refusal) -> bool {
    refusal.reason != Drop::Malformed as u8 && refusal.reason != Drop::ExtensionHeaders as u8
}

#[inline(always)]
fn read4(tables: &KernelTables) -> Option<Counted<FlowKey4>> {
    let packet = tables.packet4()?;
    let tcp_flags = if packet.key.protocol == protocol::TCP { logged_flags(packet.signal) } else { 0 };
    Some(Counted { key: packet.key, bytes: u64::from(packet.total), tcp_flags })
}

#[inline(always)]
fn read6(tables: &KernelTables) -> Option<Counted<FlowKey6>> {
    let packet = tables.packet6()?;
    let tcp_flags = if packet.key.protocol == protocol::TCP { logged_flags(packet.signal) } else { 0 };
    Some(Counted { key: packet.key, bytes: u64::from(packet.total), tcp_flags })
}

/// Addresses and protocol, if there is that much of a header.
#[inline(always)]
fn unread4(frame: &mut XdpFrame<true>, refusal: &Refusal) -> Option<Counted<FlowKey4>> {
    let header = frame.at::<{ ETHERNET + 20 }>(0)?;
    let (source, destination) = (take(header, 26)?, take(header, 30)?);
    let key = FlowKey4 { source, destination, protocol: header[23], ..FlowKey4::default() };
    Some(Counted { key, bytes: u64::from(refusal.length) - ETHERNET as u64, tcp_flags: 0 })
}

/// The same for IPv6.
#[inline(always)]
fn unread6(frame: &mut XdpFrame<true>, refusal: &Refusal) -> Option<Counted<FlowKey6>> {
    let header = frame.at::<{ ETHERNET + 40 }>(0)?;
    let (source, destination) = (take(header, 22)?, take(header, 38)?);
    let key = FlowKey6 { source, destination, protocol: header[20], ..FlowKey6::default() };
    Some(Counted { key, bytes: u64::from(refusal.length) - ETHERNET as u64, tcp_flags: 0 })
}

/// Counts one packet with its ends, or where there is no room, without.
#[inline(always)]
fn note<K>(map: &HashMap<K, Refused>, key: &K, one: &Refused) {
    if !add(map, key, one) && map.insert(key, one, u64::from(BPF_NOEXIST)).is_err() && !add(map, key, one) {
        // Neither was it there, nor did another CPU put it there: the map is full.
        lose(one.bytes.load());
    }
}

#[inline(always)]
fn add<K>(map: &HashMap<K, Refused>, key: &K, one: &Refused) -> bool {
    let Some(pointer) = map.get_ptr(key) else { return false };
    // SAFETY: the map is preallocated, so the value stays mapped; all that changes in it is atomic, and the controller
    // removes it only when no program can have it any more.
    let known = unsafe { &*pointer };
    let last: Ticks = one.last.load();
    known.add(one.bytes.load(), one.tcp_flags.load(), last);
    known.rule.store(one.rule.load());
    true
}

#[inline(always)]
fn lose(bytes: u64) {
    if let Some(counter) = REFUSED_LOST.get_ptr_mut(0) {
        // SAFETY: as in `programs::count`.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
