//! What firewall rules decided that is to be logged, as the datapath hands it over.

use super::ring::Ring;
use super::{Datapath, Result};
use forwarder_ebpf::abi::LEVELS;
use forwarder_ebpf::abi::firewall::RuleEvent;
use forwarder_ebpf::abi::names;
use zerocopy::FromBytes;

/// The ring that they come through.
#[derive(Debug)]
pub struct RuleEvents(Ring);

impl Datapath {
    /// The ring of rule events; there is one reader. To be called on a runtime with I/O.
    ///
    /// # Errors
    /// When it was taken before, or cannot be mapped into memory.
    pub fn take_rule_events(&self) -> Result<RuleEvents> {
        Ring::take(self, names::RULE_LOG).map(RuleEvents)
    }

    /// Rule events that were suppressed since the datapath was loaded.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_suppressed_rule_events(&self) -> Result<u64> {
        let sums =
            self.rule_log_budget.read_folded(LEVELS as usize, |sum, budget| sum.suppressed += budget.suppressed)?;
        Ok(sums.iter().map(|sum| sum.suppressed).sum())
    }
}

impl RuleEvents {
    /// Waits for an event. May be cancelled.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub async fn next_event(&mut self) -> Result<RuleEvent> {
        self.0.next(|record| RuleEvent::read_from_bytes(record).ok()).await
    }
}
