//! The firewall's rules into the datapath: compiled, exchanged, and shown to those who ask.

use super::{Controller, ControllerError};
use crate::firewall::compile::{CompileError, Compiled, Matcher, compile};
use crate::firewall::report::InForce;
use crate::plan::{FirewallPlan, Plan};
use forwarder_ebpf::abi::firewall::{rule, switch};
use std::time::Instant;

impl Controller {
    /// Compiles the rules and exchanges the policy, if they have changed. The switches come with `apply_control`, and with
    /// them the epoch: live flows are judged again then.
    pub(super) fn apply_firewall(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let planned = &plan.firewall_rules;
        if self.firewall.as_ref() != Some(planned) {
            let begun = Instant::now();
            let assigned = self.ledger.assign(&planned.rules);
            let assigned = assigned.ok_or(CompileError::TooManyRules(planned.rules.len()))?;
            let compiled = with_counters(planned, &assigned.counters, u64::from(plan.firewall.max_memory))?;
            for counter in &assigned.new {
                self.live.datapath().clear_rule_counter(*counter)?;
            }
            if planned.switches & (switch::RULES | switch::HOST_RULES) != 0 {
                self.live.datapath().write_policy(&compiled.lines)?;
                let (rules, bytes) = (planned.rules.len(), compiled.bytes());
                tracing::info!("{rules} firewall rules, {bytes} bytes, in {} ms", begun.elapsed().as_millis());
            }
            let in_force = InForce::new(planned, &assigned.counters, compiled);
            self.ledger.keep(assigned);
            let saved = self.ledger.save();
            self.log_failure("write down which rule has which counter", saved);
            *self.live.rules() = in_force;
            self.firewall = Some(planned.clone());
        }
        let default = plan.firewall.default;
        let sets = plan.firewall.sets.iter().map(|set| (set.name.clone(), set.addresses.clone())).collect();
        self.live.rules().sets = sets;
        self.live.rules().set_changes = self.live_sets.differences();
        self.live.rules().defaults = [default.inside, default.outside].map(|action| action.name().to_owned());
        Ok(())
    }

    /// Tells the datapath which of the flows that it counts as unanswered have ended, as the last pass has seen it. Before the
    /// first one, what the controller before has told counts.
    pub(super) fn refresh_limits(&mut self) {
        let (passes, past) = {
            let census = self.live.census();
            (census.passes, census.unanswered_past)
        };
        if passes > 0 && past != self.control.unanswered_past {
            self.control.unanswered_past = past;
            let written = self.live.datapath().write_control(&self.control);
            self.log_failure("tell the datapath which flows have ended", written);
        }
        self.live.set_sweeps(passes);
    }
}

fn with_counters(planned: &FirewallPlan, counters: &[u16], allowed: u64) -> Result<Compiled, ControllerError> {
    let with_counter = |(matcher, counter): (&Matcher, &u16)| {
        let word = matcher.word | u64::from(*counter) << rule::COUNTER_SHIFT;
        Matcher { word, ..matcher.clone() }
    };
    let matchers: Vec<_> = planned.matchers.iter().zip(counters).map(with_counter).collect();
    Ok(compile(&matchers, allowed)?)
}
