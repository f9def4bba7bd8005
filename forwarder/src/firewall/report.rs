//! What `forwarder rules` shows: every rule in its order, what it has met, and what keeps others from it.

use super::compile::Compiled;
use super::live_sets::Difference;
use super::ranges::Addresses;
use crate::plan::{FirewallPlan, PlannedRule};
use forwarder_ebpf::abi::firewall::{COUNTER_INSIDE, COUNTER_OUTSIDE, Line, RuleCounter};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// The rules that are in force, as the loop last applied them.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Each with its counter.
    pub rules: Vec<(PlannedRule, u16)>,
    /// Their names by counter, for records; empty where there is none.
    pub names: Arc<Vec<String>>,
    /// What becomes of flows that no rule matches, inside and outside.
    pub defaults: [String; 2],
    /// The plan that they are of.
    pub plan: Arc<FirewallPlan>,
    /// Why a rule is never met, by its place; found when somebody asks.
    unmet: Arc<OnceLock<Vec<Option<String>>>>,
    /// The compiled policy.
    pub lines: Arc<[Line]>,
    /// Sets of addresses, by name.
    pub sets: Vec<(String, Addresses)>,
    /// How sets differ from the configuration, by name; those that do.
    pub set_changes: BTreeMap<String, Difference>,
    /// Memory that the rules take in the kernel, bytes.
    pub bytes: u64,
}

/// One rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleReport {
    /// Its name, or its line.
    pub name: String,
    /// What it says.
    pub rule: String,
    /// About packets for the host.
    pub host: bool,
    /// First packets of flows; packets that became no flow count each.
    pub hits: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// How long ago the last was; none when there was none.
    pub last_hit_seconds: Option<f64>,
    /// Why it is never met, if that is known.
    pub unmet: Option<String>,
}

impl InForce {
    /// The rules of a plan with their counters, and as they were compiled.
    pub fn new(plan: &FirewallPlan, counters: &[u16], compiled: Compiled) -> Self {
        let rules: Vec<(PlannedRule, u16)> = plan.rules.iter().cloned().zip(counters.iter().copied()).collect();
        let highest = rules.iter().map(|(_, counter)| usize::from(*counter)).max();
        let mut names = vec![String::new(); highest.map_or(0, |highest| highest + 1)];
        for (rule, counter) in &rules {
            names[usize::from(*counter)].clone_from(&rule.name);
        }
        let (bytes, lines) = (compiled.bytes(), compiled.lines.into());
        Self { rules, names: Arc::new(names), plan: Arc::new(plan.clone()), bytes, lines, ..Self::default() }
    }

    /// So many counters have to be read.
    pub fn counters(&self) -> usize {
        let used = self.rules.iter().map(|(_, counter)| *counter);
        usize::from(used.max().unwrap_or(COUNTER_OUTSIDE).max(COUNTER_OUTSIDE)) + 1
    }

    /// With what they have met, and why not; may take a second or two when the rules are new. `now` and HZ are of the clock that counters are stamped by.
    pub fn report(&self, counters: &[RuleCounter], (now, per_second): (u32, u32)) -> Vec<RuleReport> {
        let count = |counter: u16| counters.get(usize::from(counter)).copied().unwrap_or_default();
        let ago = |counter: &RuleCounter| {
            let ticks = now.wrapping_sub(counter.last_hit);
            (counter.hits > 0).then(|| f64::from(ticks) / f64::from(per_second))
        };
        let row = |name: String, rule: String, host, counter: u16, unmet: Option<String>| {
            let counter = count(counter);
            let (hits, bytes, last_hit_seconds) = (counter.hits, counter.bytes, ago(&counter));
            RuleReport { name, rule, host, hits, bytes, last_hit_seconds, unmet }
        };
        let unmet = self.unmet.get_or_init(|| {
            let counters: Vec<u16> = self.rules.iter().map(|(_, counter)| *counter).collect();
            crate::firewall::shadow::unmet_in(&self.plan, &self.lines, &counters)
        });
        let rules = self.rules.iter().enumerate().map(|(at, (rule, counter))| {
            let unmet = unmet.get(at).cloned().flatten();
            row(rule.name.clone(), rule.text.clone(), rule.for_host, *counter, unmet)
        });
        let defaults = [("default, inside", COUNTER_INSIDE), ("default, outside", COUNTER_OUTSIDE)];
        let defaults = defaults
            .into_iter()
            .zip(&self.defaults)
            .map(|((name, counter), action)| row(name.to_owned(), action.clone(), false, counter, None));
        rules.chain(defaults).collect()
    }
}
