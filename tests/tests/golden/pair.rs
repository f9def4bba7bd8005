//! Two bodies side by side. Cases are judged by the second; where the first does otherwise, that is noted.

use forwarder_ebpf::abi::{Counter, Ticks};
use forwarder_golden::body::{Body, Flows, Hits, Sent};
use forwarder_golden::case::Change;
use forwarder_golden::world::World;
use forwarder_kit::packet::describe;
use std::cell::{Cell, RefCell};
use std::fmt::Debug;

/// Two bodies that must not differ.
pub struct Pair<A, B> {
    first: A,
    second: B,
    differences: RefCell<Vec<String>>,
    handshakes: Cell<usize>,
}

impl<A: Body, B: Body> Pair<A, B> {
    pub fn new(first: A, second: B) -> Self {
        Self { first, second, differences: RefCell::default(), handshakes: Cell::default() }
    }

    /// Entries with handshakes of which both have measured the same.
    pub fn handshakes(&self) -> usize {
        self.handshakes.get()
    }

    /// Which cell a handshake has is a secret of the second body, and so is who takes it.
    fn same_round_trips(&self, one: &Flows, other: &Flows) {
        for (one, other) in one.measured.iter().zip(&other.measured).filter(|(_, other)| other.is_some()) {
            self.same("round trips", one, other);
            self.handshakes.update(|count| count + usize::from(one == other && *one != Some([false; 2])));
        }
    }

    /// What was noted since the last time.
    pub fn take_differences(&self) -> Vec<String> {
        self.differences.take()
    }

    fn same<T: PartialEq + Debug>(&self, what: &str, one: &T, other: &T) {
        if one != other {
            self.differences.borrow_mut().push(format!("{what}: the bodies differ: {one:02x?}\n    {other:02x?}"));
        }
    }
}

impl<A: Body, B: Body> Body for Pair<A, B> {
    fn reset(&mut self, world: &World) {
        self.first.reset(world);
        self.second.reset(world);
    }

    fn change(&mut self, change: &Change) {
        self.first.change(change);
        self.second.change(change);
    }

    fn wait(&mut self, ticks: Ticks) {
        self.first.wait(ticks);
        self.second.wait(ticks);
    }

    fn send(&mut self, ingress: u32, frame: &[u8]) -> Sent {
        let (one, other) = (self.first.send(ingress, frame), self.second.send(ingress, frame));
        self.same(&describe(frame), &one, &other);
        other
    }

    fn counters(&self) -> Vec<Counter> {
        let (one, other) = (self.first.counters(), self.second.counters());
        let differs = |(at, (one, other)): (usize, (&Counter, &Counter))| (one != other).then_some(at);
        let differing: Vec<_> = one.iter().zip(&other).enumerate().filter_map(differs).collect();
        self.same("counters", &differing, &vec![]);
        other
    }

    fn rule_hits(&self, count: usize) -> Vec<Hits> {
        let (one, other) = (self.first.rule_hits(count), self.second.rule_hits(count));
        let differs = |(at, (one, other)): (usize, (&Hits, &Hits))| (one != other).then_some((at, *one, *other));
        let differing: Vec<_> = one.iter().zip(&other).enumerate().filter_map(differs).collect();
        self.same("rules' counters", &differing, &vec![]);
        other
    }

    fn flows(&self) -> Flows {
        let (one, other) = (self.first.flows(), self.second.flows());
        self.same("flow entries", &one.without_stamps(), &other.without_stamps());
        self.same_round_trips(&one, &other);
        other
    }

    fn take_held(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        let (one, other) = (self.first.take_held(), self.second.take_held());
        self.same("held frames", &one, &other);
        other
    }
}
