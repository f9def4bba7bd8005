//! `Frame` and `Tables` in plain Rust: the core on any host, for tests, benches and fuzzing.
//!
//! A [`Sim`] is one CPU with its maps. It behaves as the maps do where that can be seen: a flow table has room for so many
//! entries and no more, an entry that was removed stays readable to who has found it, every interface index below the limit
//! has a configuration, be it an empty one. What depends on chance or time is the test's: random numbers come from a seed
//! or a script, and the time of arrival is an argument.
//!
//! Not here: other CPUs. What they could do in between is told with [`Sim::race`].
//!
//! ```
//! use forwarder_ebpf::abi::{IfaceConfig, Side};
//! use forwarder_ebpf::sim::Sim;
//! use forwarder_ebpf::verdict::{Pass, Verdict};
//!
//! let sim = Sim::new().iface(1, IfaceConfig { side: Side::Inside as u8, mac: [2; 6], ..IfaceConfig::default() });
//! let arp = [&[2; 6][..], &[4; 6], &[8, 6], &[0; 28]].concat();
//! assert_eq!(sim.process(&arp, 1, 0).verdict, Verdict::Pass(Pass::NotIp));
//! ```

mod config;
mod fib;
mod firewall;
mod flows;
mod frame;
mod tables;

pub use flows::Flows;
pub use frame::Buffer;

use crate::abi::firewall::{Line, RuleCounter, RuleEvent, RuleLogBudget, SourceCell, Unanswered};
use crate::abi::{Control, Counter, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6};
use crate::abi::{FlowEntry, FlowKey, Handshake, IfaceConfig, NatRule, Place, RoundTrips, Ticks, counter_index};
use crate::frame::Frame;
use crate::pipeline;
use crate::tables::{Answer, Asked, Judged, Tables};
use crate::verdict::{Drop, Pass, Verdict};
use fib::Fib;
use flows::Fragments;
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

/// Tail calls that the kernel allows for one frame (linux/bpf.h, `MAX_TAIL_CALL_CNT`).
const MAX_TAIL_CALLS: usize = 33;

/// Cells for handshakes: fewer than the kernel's map has, so that a `Sim` is soon made.
const HANDSHAKES: usize = 1 << 12;

/// What another CPU does just before the next flow entry is inserted.
type Race = Box<dyn FnOnce(&Sim)>;

/// The datapath's surroundings, and the datapath in them.
pub struct Sim {
    /// IPv4 flows.
    pub flows4: Flows<FlowKey4>,
    /// IPv6 flows.
    pub flows6: Flows<FlowKey6>,
    fragments4: Fragments<FragmentKey4, FragmentOwner4>,
    fragments6: Fragments<FragmentKey6, FragmentOwner6>,
    ifaces: Vec<IfaceConfig>,
    control: Control,
    nat_rules: Vec<NatRule>,
    nat_addresses: Vec<[u8; 4]>,
    host_ports: Vec<u64>,
    fib4: Fib<4>,
    fib6: Fib<16>,
    not_forwarding: Vec<u32>,
    counters: RefCell<Vec<Counter>>,
    held: RefCell<Vec<Held>>,
    policy: Option<Rc<[Line]>>,
    rules: RefCell<Vec<RuleCounter>>,
    rule_log: RefCell<Vec<RuleEvent>>,
    unanswered: [Unanswered; 8],
    sources: Vec<SourceCell>,
    handshakes: Vec<Handshake>,
    state: State,
}

/// What the kernel keeps per CPU, and what stands in for chance.
struct State {
    answer: Cell<Option<Answer>>,
    judged: Cell<Judged>,
    asked: RefCell<Option<Rc<Asked>>>,
    log_budget: Cell<RuleLogBudget>,
    tokens: Cell<u32>,
    tokens_since: Cell<Ticks>,
    seed: Cell<u32>,
    script: RefCell<VecDeque<u32>>,
    length: Cell<usize>,
    egress: Cell<u32>,
    clock_us: Cell<u32>,
    race: RefCell<Option<Race>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            answer: Cell::new(None),
            judged: Cell::new(Judged::NOT),
            asked: RefCell::new(None),
            log_budget: Cell::default(),
            tokens: Cell::new(0),
            tokens_since: Cell::new(0),
            seed: Cell::new(1),
            script: RefCell::default(),
            length: Cell::new(0),
            egress: Cell::new(0),
            clock_us: Cell::new(0),
            race: RefCell::new(None),
        }
    }
}

/// A frame that waits for its next hop's link-layer address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Interface that it came by.
    pub ingress: u32,
    /// Interface that it is to leave by.
    pub egress: u32,
    /// As it came.
    pub frame: Vec<u8>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended; never `Verdict::Next`.
    pub verdict: Verdict,
    /// The frame as the datapath left it.
    pub frame: Vec<u8>,
}

impl Sim {
    /// A copy of `frame` through the datapath.
    pub fn process(&self, frame: &[u8], ingress: u32, now: Ticks) -> Outcome {
        let mut buffer = Buffer::new(frame);
        let verdict = self.run(&mut buffer, ingress, now);
        Outcome { verdict, frame: buffer.bytes().to_vec() }
    }

    /// A frame through the datapath in place: stage after stage as the kernel's tail calls, then counted as `bpf` does.
    pub fn run(&self, frame: &mut Buffer, ingress: u32, now: Ticks) -> Verdict {
        self.state.answer.set(None);
        self.state.judged.set(Judged::NOT);
        self.state.length.set(frame.length());
        let mut length = frame.length();
        let mut verdict = pipeline::enter(frame, self, ingress, now);
        for _ in 0..MAX_TAIL_CALLS {
            let Verdict::Next(stage) = verdict else { break };
            length = frame.length();
            verdict = pipeline::stage(stage, frame, self, ingress, now);
        }
        if let Verdict::Next(_) = verdict {
            verdict = Verdict::Drop(Drop::Internal);
        }
        if verdict == Verdict::Pass(Pass::Held) {
            let held = Held { ingress, egress: self.state.egress.get(), frame: frame.bytes().to_vec() };
            self.held.borrow_mut().push(held);
        }
        self.count_outcome(ingress, verdict, length);
        self.flows4.vacate();
        self.flows6.vacate();
        verdict
    }

    fn count_outcome(&self, ingress: u32, verdict: Verdict, length: usize) {
        let (Some(outcome), Some(iface)) = (verdict.outcome(), Tables::iface(self, ingress)) else { return };
        if let Some(counter) = self.counters.borrow_mut().get_mut(counter_index(iface.slot, outcome) as usize) {
            counter.packets += 1;
            counter.bytes += length as u64;
        }
    }

    /// All counters, see `abi::counter_index`.
    pub fn counters(&self) -> Vec<Counter> {
        self.counters.borrow().clone()
    }

    /// The frames that wait for a neighbour, oldest first; they are the caller's then.
    pub fn take_held(&self) -> Vec<Held> {
        self.held.take()
    }

    /// Sets the precise clock, microseconds.
    pub fn set_clock_us(&self, now: u32) {
        self.state.clock_us.set(now);
    }

    /// What has been measured of the connection that an entry belongs to. `None`: it had no handshake, or others have had
    /// its cell since.
    pub fn round_trips<K: FlowKey + Default + Ord>(
        &self,
        flows: &Flows<K>,
        key: &K,
        entry: &FlowEntry,
    ) -> Option<RoundTrips> {
        let place = Place::of_flow(key, entry, |originator| flows.hash(originator))?;
        Tables::handshake(self, place.index)?.round_trips(place)
    }

    /// Has `other` happen just before the next flow entry is inserted, as if another CPU did it.
    pub fn race(&self, other: impl FnOnce(&Self) + 'static) {
        self.state.race.replace(Some(Box::new(other)));
    }
}
