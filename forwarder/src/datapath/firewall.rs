//! The firewall's maps: a policy is a map of its own, made, filled, and then exchanged for the one before.

use super::sys;
use super::{Datapath, DatapathError, Result};
use forwarder_ebpf::abi::firewall::{Line, RuleCounter, SOURCE_CELLS};
use forwarder_ebpf::abi::names;
use std::os::fd::{AsFd, AsRawFd};
use zerocopy::IntoBytes;

/// Lines that one system call writes.
const BATCH: usize = 16_384;

impl Datapath {
    /// Exchanges the policy. Packets see the old one or the new one, never a part.
    ///
    /// # Errors
    /// When the kernel has no memory for it, or refuses; the old one stays then.
    pub fn write_policy(&self, lines: &[Line]) -> Result<()> {
        let failed = |action| move |source| DatapathError::map(action, names::FIREWALL, source);
        let policy = sys::create_policy(size_of::<Line>() as u32, lines.len() as u32).map_err(failed("make"))?;
        for (chunk, first) in lines.chunks(BATCH).zip((0u32..).step_by(BATCH)) {
            let keys: Vec<u32> = (first..).take(chunk.len()).collect();
            sys::update_batch(policy.as_fd(), keys.as_bytes(), chunk.as_bytes(), chunk.len())
                .map_err(failed("fill"))?;
        }
        let descriptor = policy.as_raw_fd().cast_unsigned();
        sys::update_element(self.policy.as_fd(), 0u32.as_bytes(), descriptor.as_bytes(), 0).map_err(failed("exchange"))
    }

    /// What the rules with the first `count` counters have met, summed over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_rule_counters(&self, count: usize) -> Result<Vec<RuleCounter>> {
        self.rule_counters.read_folded(count, |sum, counter| {
            sum.hits += counter.hits;
            sum.bytes += counter.bytes;
            // Ticks wrap after months; of two CPUs' the later one is ahead by less than half of that.
            if sum.last_hit == 0 || (counter.last_hit != 0 && counter.last_hit.wrapping_sub(sum.last_hit) < 1 << 31) {
                sum.last_hit = counter.last_hit;
            }
        })
    }

    /// Flows that were opened and not answered, by family (times 4) and side; those that have ended are among them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_unanswered(&self) -> Result<[u32; 8]> {
        let mut all = [0; 8];
        for (group, unanswered) in (0u32..).zip(&mut all) {
            let count = self.unanswered.read(&group)?.unwrap_or_default();
            *unanswered = (count.opened.load() as u32).wrapping_sub(count.replied.load() as u32);
        }
        Ok(all)
    }

    /// Flows that each cell of sources has opened.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_sources_opened(&self) -> Result<Vec<u32>> {
        let mut opened = vec![0; SOURCE_CELLS as usize];
        self.sources.visit(|cell, source| {
            opened[*cell as usize % SOURCE_CELLS as usize] = source.opened.load() as u32;
            Ok(())
        })?;
        Ok(opened)
    }

    /// Says how many flows of each cell have ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_sources_past(&self, past: &[u32]) -> Result<()> {
        let keys: Vec<u32> = (0..).take(past.len()).collect();
        sys::update_batch(self.sources_past.as_fd(), keys.as_bytes(), past.as_bytes(), past.len())
            .map_err(|source| DatapathError::map("write", names::SOURCES_PAST, source))
    }

    /// Sets one rule's counter to zero, for the next rule that has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear_rule_counter(&self, counter: u16) -> Result<()> {
        self.rule_counters.clear_one(counter.into())
    }
}
