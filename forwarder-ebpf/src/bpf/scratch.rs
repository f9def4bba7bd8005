//! Memory of the running program, and what one stage leaves there for the next.

use aya_ebpf::bindings::bpf_fib_lookup as FibParams;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use forwarder_ebpf::abi::Ticks;
use forwarder_ebpf::tables::{Answer, Judged};

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

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

/// This CPU's scratch.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    let pointer = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the kernel gave the pointer to this CPU's copy of the value; no other program runs on this CPU before this
    // one ends, and the reference is not kept across calls of this function.
    Some(unsafe { &mut *pointer })
}
