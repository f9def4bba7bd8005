//! What holds whatever comes: laws that are checked after every frame of a script.

use crate::body::{Body, Flows};
use crate::case::Change;
use crate::script::{Event, Script};
use crate::sim_body::SimBody;
use crate::world::{IN, PORTS, World};
use forwarder_ebpf::abi::{FlowKey, FlowKey4, OUTCOMES, status};
use forwarder_ebpf::verdict::{Drop, Verdict};
use forwarder_kit::packet::{describe, verify_checksums};
use std::collections::BTreeSet;

/// Plays a script in the sim. An error is the first broken law.
pub fn hold(script: &[u8]) -> Result<(), String> {
    let mut play = Play::default();
    let mut script = Script::new(script);
    while !script.is_over() {
        let events = script.events(&play.last, &play.out, &play.body.sim.control_now());
        for event in events {
            play.event(&event).map_err(|error| format!("{error}, at {}", told(&event)))?;
        }
    }
    Ok(())
}

fn told(event: &Event) -> String {
    match event {
        Event::Frame(ingress, frame) => format!("a frame by {ingress}: {} {frame:02x?}", describe(frame)),
        other => format!("{other:?}"),
    }
}

struct Play {
    body: SimBody,
    frames: u64,
    last: (u32, Vec<u8>),
    out: (u32, Vec<u8>),
}

impl Default for Play {
    fn default() -> Self {
        let mut body = SimBody::default();
        body.reset(&World::default());
        Self { body, frames: 0, last: (IN, Vec::new()), out: (IN, Vec::new()) }
    }
}

impl Play {
    fn event(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Wait(ticks) => self.body.wait(*ticks),
            Event::Change(change) => self.change(change),
            Event::Frame(ingress, frame) => self.frame(*ingress, frame)?,
        }
        let flows = self.body.flows();
        flows.check_pairs()?;
        if let Some(line) = flows.lines().iter().find(|line| line.contains("lost")) {
            return Err(format!("a connection with one entry: {line}"));
        }
        distinct_outside(&flows)
    }

    fn change(&mut self, change: &Change) {
        self.body.change(change);
        // A route is looked at again when the epoch moves.
        let mut control = self.body.sim.control_now();
        control.epoch = control.epoch.wrapping_add(1);
        self.body.change(&Change::Control(control));
    }

    fn frame(&mut self, ingress: u32, frame: &[u8]) -> Result<(), String> {
        let outcome = self.body.sim.process(frame, ingress, self.body.now);
        self.frames += 1;
        self.counted()?;
        let (Verdict::Forward(_) | Verdict::Answered(_)) = outcome.verdict else {
            self.last = (ingress, frame.to_vec());
            let untouched = outcome.frame == frame;
            return if untouched { Ok(()) } else { Err(format!("{:?}, yet it was written", outcome.verdict)) };
        };
        if verify_checksums(frame).is_ok() {
            verify_checksums(&outcome.frame).map_err(|error| format!("{:?}: {error}", outcome.verdict))?;
        }
        if let Verdict::Forward(slot) = outcome.verdict {
            if outcome.frame.len() != frame.len() {
                return Err("the length changed".to_owned());
            }
            let egress = PORTS.iter().find(|port| port.slot == slot).ok_or("no such slot")?;
            self.out = (egress.ifindex, outcome.frame);
        }
        self.last = (ingress, frame.to_vec());
        Ok(())
    }

    /// Every frame has one outcome, and none is our own mistake.
    fn counted(&self) -> Result<(), String> {
        let counters = self.body.counters();
        let sum: u64 = counters.iter().map(|counter| counter.packets).sum();
        if sum != self.frames {
            return Err(format!("{} frames, {sum} outcomes", self.frames));
        }
        let internal = |(at, _): &(usize, _)| *at as u32 % OUTCOMES == Drop::Internal.outcome();
        match counters.iter().enumerate().filter(internal).any(|(_, counter)| counter.packets != 0) {
            true => Err("an internal error".to_owned()),
            false => Ok(()),
        }
    }
}

/// No two translated flows look the same from outside.
pub fn distinct_outside(flows: &Flows) -> Result<(), String> {
    let mut seen: BTreeSet<FlowKey4> = BTreeSet::new();
    for (key, entry) in &flows.v4 {
        if entry.status.load() & status::SOURCE_NAT != 0 && !seen.insert(key.partner(entry)) {
            return Err(format!("{key:?} shares its outside with another flow"));
        }
    }
    Ok(())
}
