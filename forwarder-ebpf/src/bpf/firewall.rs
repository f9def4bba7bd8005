//! The maps of the firewall. The policy is one map in another: a new one is exchanged for the old at once, and a program
//! that has found the old one keeps it until it ends (RCU).

use crate::scratch::scratch;
use aya_ebpf::btf_maps::{Array as BtfArray, ArrayOfMaps};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use forwarder_ebpf::abi::firewall::{Line, MAX_RULE_COUNTERS, RuleCounter, SOURCE_CELLS, SourceCell, Unanswered};
use forwarder_ebpf::abi::firewall::{RULE_LOG_BYTES, RuleEvent, RuleLogBudget};
use forwarder_ebpf::abi::{Control, LEVELS, Ticks};
use forwarder_ebpf::tables::{Asked, Judged, Lines};

/// Policies differ in length (`BPF_F_INNER_MAP`, linux/bpf.h, kernel 5.10).
const ANY_LENGTH: usize = 1 << 12;

type PolicyMap = BtfArray<Line, 1, ANY_LENGTH>;

#[btf_map]
static FIREWALL: ArrayOfMaps<PolicyMap, 1> = ArrayOfMaps::new();
#[map]
static FIREWALL_COUNTERS: PerCpuArray<RuleCounter> = PerCpuArray::with_max_entries(MAX_RULE_COUNTERS, 0);
#[map]
static FIREWALL_ASKED: PerCpuArray<Asked> = PerCpuArray::with_max_entries(LEVELS, 0);
#[map]
static RULE_LOG: RingBuf = RingBuf::with_byte_size(RULE_LOG_BYTES, 0);
#[map]
static RULE_LOG_BUDGET: PerCpuArray<RuleLogBudget> = PerCpuArray::with_max_entries(LEVELS, 0);
#[map]
static UNANSWERED: Array<Unanswered> = Array::with_max_entries(8, 0);
#[map]
static SOURCES: Array<SourceCell> = Array::with_max_entries(SOURCE_CELLS, 0);
#[map]
static SOURCES_PAST: Array<u32> = Array::with_max_entries(SOURCE_CELLS, 0);

/// Flows that wait for their first answer.
#[inline(always)]
pub fn unanswered(group: u32) -> Option<&'static Unanswered> {
    UNANSWERED.get(group)
}

/// A cell that sources are counted in.
#[inline(always)]
pub fn source_cell(cell: u32) -> Option<&'static SourceCell> {
    SOURCES.get(cell)
}

/// How many flows of a cell have ended.
#[inline(always)]
pub fn source_past(cell: u32) -> u32 {
    SOURCES_PAST.get(cell).copied().unwrap_or(0)
}

/// The policy that was there when the program asked.
pub struct KernelPolicy(&'static PolicyMap);

impl KernelPolicy {
    /// Finds it.
    #[inline(always)]
    pub fn find() -> Option<Self> {
        FIREWALL.get(0).map(Self)
    }
}

impl Lines for KernelPolicy {
    #[inline(always)]
    fn line(&self, number: u32) -> Option<&Line> {
        self.0.get(number)
    }
}

/// Hands on a question.
#[inline(always)]
pub fn set_asked(level: u32, asked: &Asked) {
    if let Some(place) = FIREWALL_ASKED.get_ptr_mut(level) {
        // SAFETY: the pointer is to this CPU's copy of the value; no other program of this level runs on this CPU before this
        // one ends.
        unsafe { *place = *asked };
    }
}

/// The question handed on by the stage before.
#[inline(always)]
pub fn asked(level: u32) -> Option<&'static Asked> {
    FIREWALL_ASKED.get(level)
}

/// Counts a packet of a rule.
#[inline(always)]
pub fn count_rule(counter: u16, bytes: u32, now: Ticks) {
    let Some(counter) = FIREWALL_COUNTERS.get_ptr_mut(u32::from(counter)) else { return };
    // SAFETY: as in `programs::count`.
    unsafe {
        (*counter).hits += 1;
        (*counter).bytes += u64::from(bytes);
        (*counter).last_hit = now;
    }
}

/// Has the controller log what a rule decided.
#[inline(always)]
pub fn log_rule(level: u32, event: &RuleEvent, now: Ticks, control: &Control) {
    let Some(budget) = RULE_LOG_BUDGET.get_ptr_mut(level) else { return };
    // SAFETY: the pointer is to this CPU's copy of the value, which no other program of this level uses before this one ends.
    let budget = unsafe { &mut *budget };
    if budget.take(now, control.rule_logs_per_second, control.ticks_per_second)
        && RULE_LOG.output::<RuleEvent>(event, 0).is_err()
    {
        budget.suppressed += 1;
    }
}

/// Hands on what the firewall decided.
#[inline(always)]
pub fn set_judged(level: u32, judged: Judged) {
    if let Some(scratch) = scratch(level) {
        scratch.judged = judged;
    }
}

/// What the firewall stage before has decided.
#[inline(always)]
pub fn judged(level: u32) -> Judged {
    match scratch(level) {
        Some(scratch) => scratch.judged,
        None => Judged::NOT,
    }
}
