//! Memory of the running program, and what one stage leaves there for the next.

use crate::frame::opaque;
use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, xdp_md};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use forwarder_ebpf::abi::{LEVELS, Ticks};
use forwarder_ebpf::tables::{Answer, Judged};

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(LEVELS, 0);

/// What stays on a CPU from one stage, or one frame, to the next.
#[repr(C)]
pub struct Scratch {
    /// Frames seen, for sampling.
    pub frames: u32,
    /// ICMP errors that may still be sent in the current second.
    pub tokens: u32,
    /// When that second began, ticks.
    pub tokens_since: Ticks,
    /// A handed-on answer is here.
    pub has_answer: u32,
    /// When the frame in work entered, ns; 0 when it is not sampled.
    pub entered_ns: u64,
    /// The handed-on answer.
    pub answer: Answer,
    /// What the firewall decided.
    pub judged: Judged,
    /// What was refused, for the program that counts it.
    pub refusal: crate::refuse::Refusal,
    /// Question and answer of the FIB: here because the stack is short.
    pub fib: FibParams,
}

/// Whose memory a program uses: 0 on a frame that came by an interface, 1 on one of the controller's (`BPF_PROG_TEST_RUN`),
/// which has bytes in front of it, as none has that comes by an interface. Before kernel 6.3 the controller's do not run with
/// softirqs off (`bpf_test_run`), so a frame that comes by an interface may interrupt them.
#[inline(always)]
pub fn level(ctx: *mut xdp_md) -> u32 {
    // SAFETY: `ctx` is the program's own context, readable for as long as the program runs.
    let (front, data) = unsafe { ((*ctx).data_meta as usize, (*ctx).data as usize) };
    // The sign of the difference: a comparison would have the verifier follow every program twice.
    (opaque(front).wrapping_sub(data) >> (usize::BITS - 1)) as u32
}

/// This CPU's scratch of a level, which must be that of the running program.
#[inline(always)]
pub fn scratch(level: u32) -> Option<&'static mut Scratch> {
    let pointer = SCRATCH.get_ptr_mut(level)?;
    // SAFETY: the kernel gave the pointer to this CPU's copy of the value; no other program of this level runs on this CPU
    // before this one ends, and the reference is not kept across calls of this function.
    Some(unsafe { &mut *pointer })
}
