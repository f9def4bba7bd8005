//! The BPF programs: `enter` is attached to every interface, the stages are tail-called. Owns the end of every frame:
//! one exhaustive match turns a verdict into an XDP action, a counter and, for sampled frames, a processing time.

use crate::frame::XdpFrame;
use crate::maps::{COUNTERS, DEVICES, DWELL, KernelTables, STAGES};
use crate::refuse;
use crate::scratch::{Scratch, scratch};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{IfaceConfig, counter_index, dwell_bucket};
use forwarder_ebpf::frame::Frame;
use forwarder_ebpf::pipeline;
use forwarder_ebpf::tables::Tables;
use forwarder_ebpf::verdict::{Drop, Pass, Stage, Verdict};

/// Ticks: the low half of jiffies, which costs nothing to read.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes nothing and only returns a number.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
fn clock_ns() -> u64 {
    // SAFETY: takes nothing and only returns a number.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

/// Where every frame enters.
#[xdp(frags)]
pub fn enter(ctx: XdpContext) -> u32 {
    let tables = KernelTables::new(ctx.ctx);
    let mut frame = XdpFrame::<false>::new(ctx.ctx);
    let entered_ns = match (scratch(tables.level), tables.control()) {
        (Some(scratch), Some(control)) => sample(scratch, control.sample_mask),
        _ => 0,
    };
    let verdict = pipeline::enter(&mut frame, &tables, ingress(&ctx), now());
    if let Verdict::Next(stage) = verdict {
        if let Some(scratch) = scratch(tables.level) {
            scratch.entered_ns = entered_ns;
            scratch.has_answer = 0;
            scratch.judged.stands = 0;
            scratch.judged.rule = 0;
        }
        return hand_over(&ctx, stage, frame.length() as u32);
    }
    end(&ctx, verdict, frame.length() as u32, entered_ns)
}

/// When the frame entered, for one frame in `mask + 1`; 0 for the others.
#[inline(always)]
fn sample(scratch: &mut Scratch, mask: u32) -> u64 {
    scratch.frames = scratch.frames.wrapping_add(1);
    if scratch.frames & mask == 0 { clock_ns() } else { 0 }
}

/// A tail call does not come back; when it does, its program is missing.
#[inline(always)]
fn hand_over(ctx: &XdpContext, stage: Stage, length: u32) -> u32 {
    // SAFETY: the context is the program's own, and the array holds programs of this object only.
    unsafe { STAGES.tail_call(ctx, stage as u32) };
    end(ctx, Verdict::Drop(Drop::Internal), length, 0)
}

/// Counts the frame and turns the verdict into an action.
#[inline(always)]
fn end(ctx: &XdpContext, verdict: Verdict, length: u32, entered_ns: u64) -> u32 {
    let tables = KernelTables::new(ctx.ctx);
    // Of an interface that has no place in the table every frame has been passed.
    let Some(iface) = tables.iface(ingress(ctx)) else { return XDP_PASS };
    if let Some(outcome) = verdict.outcome() {
        count(iface, outcome, length, entered_ns);
    }
    match verdict {
        Verdict::Forward(slot) => send(slot),
        Verdict::Answered(_) => send(iface.slot),
        Verdict::Pass(Pass::Held) | Verdict::Drop(_) | Verdict::Next(_) => XDP_DROP,
        Verdict::Pass(_) => XDP_PASS,
    }
}

/// Counts the frame's outcome and, when it is sampled, its time.
#[inline(always)]
pub fn count(iface: &IfaceConfig, outcome: u32, length: u32, entered_ns: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(iface.slot, outcome)) {
        // SAFETY: the pointer is to this CPU's copy of the value, and no reference to it is made. No other program writes it
        // before this one ends, but for one that interrupts a frame of the controller's (`scratch::level`): of the two counts
        // one may be lost then.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(length);
        }
    }
    if entered_ns != 0
        && let Some(bucket) = DWELL.get_ptr_mut(dwell_bucket(clock_ns().wrapping_sub(entered_ns)))
    {
        // SAFETY: as for the counter.
        unsafe { *bucket += 1 };
    }
}

/// When the frame entered, if it is sampled: for the programs behind `enter`.
#[inline(always)]
pub fn clock_of_arrival(level: u32) -> u64 {
    match scratch(level) {
        Some(scratch) => scratch.entered_ns,
        None => 0,
    }
}

/// Also back by where it came: `XDP_TX` does the same, but veth leaves such frames lying until the next ones come when the
/// other end has no XDP program (`veth_xdp_flush`, kernel 6.18).
#[inline(always)]
pub fn send(slot: u8) -> u32 {
    match DEVICES.redirect(u32::from(slot), 0) {
        Ok(action) | Err(action) => action,
    }
}

#[inline(always)]
fn run(ctx: &XdpContext, stage: Stage) -> u32 {
    let mut frame = XdpFrame::<true>::new(ctx.ctx);
    let tables = KernelTables::new(ctx.ctx);
    let length = frame.length() as u32;
    let verdict = pipeline::stage(stage, &mut frame, &tables, ingress(ctx), now());
    if let Verdict::Next(next) = verdict {
        return hand_over(ctx, next, length);
    }
    refuse::hand_over(ctx, tables.level, (stage, verdict), length);
    end(ctx, verdict, length, clock_of_arrival(tables.level))
}

macro_rules! stage_programs {
    ($($name:ident $stage:ident)*) => { $(
        #[doc = concat!("The stage `", stringify!($stage), "`.")]
        #[xdp(frags)]
        pub fn $name(ctx: XdpContext) -> u32 {
            run(&ctx, Stage::$stage)
        }
    )* };
}

stage_programs! {
    flow4 Flow4
    flow6 Flow6
    new4 New4
    new6 New6
    related4 Related4
    related6 Related6
    answer4 Answer4
    answer6 Answer6
    firewall4 Firewall4
    firewall6 Firewall6
    match4 Match4
    match6 Match6
    refuse4 Refuse4
    refuse6 Refuse6
    reset4 Reset4
    reset6 Reset6
}

/// Returns the time in ticks; run by the controller, never attached.
#[xdp(frags)]
pub fn clock(_: XdpContext) -> u32 {
    now()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the core panics (lints deny it); the compiler still wants an end, and the verifier refuses a reachable one.
    loop {}
}

// Only the licence string tells the kernel that GPL-only helpers may be used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
