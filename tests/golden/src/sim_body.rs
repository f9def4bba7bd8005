//! The sim as a body.

use crate::body::{Body, Flows, Hits, Sent, is_responder, measured};
use crate::case::Change;
use crate::world::{World, compiled, set_route};
use forwarder_ebpf::abi::{Counter, FlowEntry, FlowKey, Ticks};
use forwarder_ebpf::sim::Sim;

/// The sim, and its clock.
pub struct SimBody {
    /// The sim.
    pub sim: Sim,
    /// Ticks.
    pub now: Ticks,
}

impl Default for SimBody {
    fn default() -> Self {
        Self { sim: Sim::new(), now: 1 }
    }
}

impl Body for SimBody {
    fn reset(&mut self, world: &World) {
        self.sim = world.sim();
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Control(control) => self.sim.set_control(*control),
            Change::Policy(rules) => self.sim.set_policy(&compiled(rules).0),
            Change::Route(prefix, way) => set_route(&mut self.sim, prefix, Some(way.route())),
            Change::Forwarding(ifindex, forwards) => self.sim.set_forwarding(*ifindex, *forwards),
            Change::ForgetResponders => {
                forget(&self.sim.flows4, is_responder);
                forget(&self.sim.flows6, is_responder);
            }
            Change::ForgetFlows => {
                forget(&self.sim.flows4, |_| true);
                forget(&self.sim.flows6, |_| true);
            }
        }
    }

    fn wait(&mut self, ticks: Ticks) {
        self.now += ticks;
    }

    fn send(&mut self, ingress: u32, frame: &[u8]) -> Sent {
        let outcome = self.sim.process(frame, ingress, self.now);
        Sent { action: outcome.verdict.into(), frame: outcome.frame }
    }

    fn counters(&self) -> Vec<Counter> {
        self.sim.counters()
    }

    fn rule_hits(&self, count: usize) -> Vec<Hits> {
        self.sim.rule_counters().iter().take(count).map(Hits::from).collect()
    }

    fn flows(&self) -> Flows {
        let (v4, v6) = (self.sim.flows4.all(), self.sim.flows6.all());
        let trips4 = v4.iter().map(|(key, entry)| self.sim.round_trips(&self.sim.flows4, key, entry));
        let trips6 = v6.iter().map(|(key, entry)| self.sim.round_trips(&self.sim.flows6, key, entry));
        Flows {
            measured: trips4.chain(trips6).map(measured).collect(),
            v4: v4.into_iter().map(|(key, entry)| (key, entry.clone())).collect(),
            v6: v6.into_iter().map(|(key, entry)| (key, entry.clone())).collect(),
        }
    }

    fn take_held(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        self.sim.take_held().into_iter().map(|held| (held.ingress, held.egress, held.frame)).collect()
    }
}

fn forget<K: FlowKey + Default + Ord>(flows: &forwarder_ebpf::sim::Flows<K>, is_forgotten: fn(&FlowEntry) -> bool) {
    for (key, entry) in flows.all() {
        if is_forgotten(entry) {
            flows.remove(&key);
        }
    }
}
