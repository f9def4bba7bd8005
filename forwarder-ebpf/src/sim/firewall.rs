//! The firewall's policy and counters of a `Sim`.

use super::Sim;
use crate::abi::firewall::{Line, MAX_RULE_COUNTERS, RuleCounter, RuleEvent};
use crate::tables::{Asked, Lines};
use std::rc::Rc;
use std::vec::Vec;

impl Lines for Rc<[Line]> {
    fn line(&self, number: u32) -> Option<&Line> {
        self.get(number as usize)
    }
}

impl Sim {
    /// Gives it a compiled policy, which counts once `Control::firewall` says so.
    pub fn set_policy(&mut self, lines: &[Line]) {
        self.policy = Some(lines.into());
    }

    /// The word of the first rule of the policy that matches.
    pub fn rule_word(&self, asked: &Asked, is_ipv4: bool) -> Option<u64> {
        crate::firewall::word_for(self, asked, is_ipv4)
    }

    /// What the rules have met, by counter.
    pub fn rule_counters(&self) -> Vec<RuleCounter> {
        let mut counters = self.rules.borrow().clone();
        counters.resize(MAX_RULE_COUNTERS as usize, RuleCounter::default());
        counters
    }

    /// What rules decided that are to be logged, and how much of it was too much.
    pub fn take_rule_log(&self) -> (Vec<RuleEvent>, u64) {
        (self.rule_log.take(), self.state.log_budget.get().suppressed)
    }

    pub(super) fn count(&self, counter: u16, bytes: u32, now: u32) {
        let mut counters = self.rules.borrow_mut();
        let at = usize::from(counter);
        if counters.len() <= at {
            counters.resize(at + 1, RuleCounter::default());
        }
        if let Some(counter) = counters.get_mut(at) {
            counter.hits += 1;
            counter.bytes += u64::from(bytes);
            counter.last_hit = now;
        }
    }
}
