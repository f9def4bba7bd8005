//! Scripts for two bodies that must not differ. Nothing in them depends on chance or time: there is one public port, and
//! nobody waits long.

use forwarder_ebpf::abi::Control;
use forwarder_ebpf::abi::firewall::switch;
use forwarder_golden::body::Body;
use forwarder_golden::case::Change;
use forwarder_golden::script::{Event, Script};
use forwarder_golden::world::{IN, PORTS, World, compiled};
use forwarder_kit::packet::ETHERNET;

/// Bytes of a script.
const LENGTH: usize = 400;

/// The script of a seed (Marsaglia's xorshift64).
pub fn script(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

/// More than any policy here has.
const RULES: usize = 64;
/// Turns of a script that are played under one policy.
const TURNS: usize = 8;

/// Plays a script, under each of these policies in turn. That the two bodies differ, a `pair::Pair` notes.
pub fn run(script: &[u8], policies: &[String], body: &mut dyn Body) {
    let world = World::default().ports(4000, 4000);
    body.reset(&world);
    let (mut control, mut last, mut out) = (world.control, (IN, Vec::new()), (IN, Vec::new()));
    let mut script = Script::new(script);
    let mut policies = policies.iter().cycle();
    let mut turns = (0..TURNS).cycle();
    while !script.is_over() {
        if turns.next() == Some(0)
            && let Some(policy) = policies.next()
        {
            control = apply(body, &Change::Policy(policy.clone()), control);
        }
        for event in script.events(&last, &out, &control) {
            match event {
                Event::Wait(ticks) => body.wait(ticks % 2),
                Event::Change(change) => control = apply(body, &change, control),
                // The kernel runs no program on less than an Ethernet header.
                Event::Frame(_, frame) if frame.len() < ETHERNET => {}
                Event::Frame(ingress, frame) => {
                    let sent = body.send(ingress, &frame);
                    if let Some(egress) = egress(&sent.frame) {
                        out = (egress, sent.frame);
                    }
                    last = (ingress, frame);
                }
            }
        }
    }
    body.counters();
    body.rule_hits(RULES);
    body.flows();
    body.take_held();
}

/// Makes a change; routes and flows are looked at again when the epoch moves.
fn apply(body: &mut dyn Body, change: &Change, control: Control) -> Control {
    let control = match change {
        Change::Control(control) => Control { port_first: 4000, port_last: 4000, ..*control },
        other => {
            body.change(other);
            let firewall = match other {
                Change::Policy(text) => control.firewall & switch::REVERSE_PATH | compiled(text).1,
                _ => control.firewall,
            };
            Control { epoch: control.epoch.wrapping_add(1), firewall, ..control }
        }
    };
    body.change(&Change::Control(control));
    control
}

/// The interface whose address a frame has been given as its source.
fn egress(frame: &[u8]) -> Option<u32> {
    PORTS.iter().find(|port| frame.get(6..12) == Some(&port.mac(1))).map(|port| port.ifindex)
}
