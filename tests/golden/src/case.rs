//! What a case is: a dialogue of frames and changes, each with what has to come of it, and the flows that are left.

use crate::world::{CLIENT, CLIENT6, IN, OUT, Port, SERVER, SERVER6, Way, World, arriving};
use forwarder_ebpf::abi::{Control, Ticks};
use forwarder_ebpf::verdict::{Drop, Pass, Verdict};
use forwarder_kit::Packet;

/// One row of the table.
pub struct Case {
    /// What it shows.
    pub sentence: &'static str,
    /// What the controller wrote before.
    pub world: World,
    /// What happens.
    pub steps: Vec<Step>,
    /// The connections that are left, as `body::Flows::lines` writes them.
    pub flows: Vec<&'static str>,
}

/// One thing that happens.
pub enum Step {
    /// A frame comes in.
    Frame {
        /// Interface that it comes by.
        ingress: u32,
        /// Its bytes.
        frame: Vec<u8>,
        /// What has to be decided.
        verdict: Verdict,
        /// What it has to be then, if that matters.
        out: Option<Vec<u8>>,
    },
    /// Something around it changes.
    Change(Change),
    /// Time goes by.
    Wait(Ticks),
}

/// What can change between frames.
#[derive(Clone, Debug)]
pub enum Change {
    /// The switches.
    Control(Control),
    /// Other rules of the firewall; the epoch, and the switches where they are others, are another step's.
    Policy(String),
    /// A route appears that is not in `world::ROUTES`.
    Route(&'static str, Way),
    /// Forwarding is switched for what enters by an interface.
    Forwarding(u32, bool),
    /// Every responder's entry is lost, as when the controller is about to remove the connection.
    ForgetResponders,
    /// All flows have ended.
    ForgetFlows,
}

/// A case in the default world.
pub fn case(sentence: &'static str) -> Case {
    Case { sentence, world: World::default(), steps: Vec::new(), flows: Vec::new() }
}

impl Case {
    /// Another world.
    pub fn world(mut self, world: World) -> Self {
        self.world = world;
        self
    }

    /// A frame that leaves by `egress` as `out`.
    pub fn forwards(self, ingress: u32, packet: Packet, egress: u32, out: Packet) -> Self {
        self.forwards_frame(ingress, packet.build(), egress, out.build())
    }

    /// The same with bytes.
    pub fn forwards_frame(self, ingress: u32, frame: Vec<u8>, egress: u32, out: Vec<u8>) -> Self {
        self.frame(ingress, frame, Verdict::Forward(Port::of(egress).slot), Some(out))
    }

    /// A frame that ends.
    pub fn drops(self, ingress: u32, packet: Packet, why: Drop) -> Self {
        self.drops_frame(ingress, packet.build(), why)
    }

    /// Frames that end, one after the other.
    pub fn each(self, frames: impl IntoIterator<Item = (u32, Packet, Drop)>) -> Self {
        frames.into_iter().fold(self, |case, (ingress, packet, why)| case.drops(ingress, packet, why))
    }

    /// The same with bytes.
    pub fn drops_frame(self, ingress: u32, frame: Vec<u8>, why: Drop) -> Self {
        self.frame(ingress, frame, Verdict::Drop(why), None)
    }

    /// A frame that the host gets as it is; or the controller, when it waits.
    pub fn passes(self, ingress: u32, packet: Packet, why: Pass) -> Self {
        self.passes_frame(ingress, packet.build(), why)
    }

    /// The same with bytes.
    pub fn passes_frame(self, ingress: u32, frame: Vec<u8>, why: Pass) -> Self {
        let out = Some(frame.clone());
        self.frame(ingress, frame, Verdict::Pass(why), out)
    }

    /// A frame that ends, and is answered.
    pub fn answers(self, ingress: u32, packet: Packet, why: Drop, answer: Packet) -> Self {
        self.frame(ingress, packet.build(), Verdict::Answered(why), Some(answer.build()))
    }

    fn frame(mut self, ingress: u32, frame: Vec<u8>, verdict: Verdict, out: Option<Vec<u8>>) -> Self {
        self.steps.push(Step::Frame { ingress, frame, verdict, out });
        self
    }

    /// Something changes.
    pub fn change(mut self, change: Change) -> Self {
        self.steps.push(Step::Change(change));
        self
    }

    /// The switches change, and the epoch with them.
    pub fn control(mut self, change: impl FnOnce(&mut Control)) -> Self {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Change(Change::Control(control)) => Some(*control),
            _ => None,
        });
        let mut control = last.unwrap_or(self.world.control);
        control.epoch += 1;
        change(&mut control);
        self.steps.push(Step::Change(Change::Control(control)));
        self
    }

    /// Time goes by.
    pub fn wait(mut self, ticks: Ticks) -> Self {
        self.steps.push(Step::Wait(ticks));
        self
    }

    /// What is left.
    pub fn leaves(mut self, flows: &[&'static str]) -> Self {
        self.flows = flows.to_vec();
        self
    }
}

/// From the client to the server.
pub fn out() -> Packet {
    arriving(IN, CLIENT, SERVER)
}

/// From the client to the server, IPv6.
pub fn out6() -> Packet {
    arriving(IN, CLIENT6, SERVER6)
}

/// From the server to the client, IPv6.
pub fn back6() -> Packet {
    arriving(OUT, SERVER6, CLIENT6)
}

/// The error that we send to who sent us a frame by `ingress`: from our address, TTL 64, and for IPv4 with TOS 0xc0 and DF.
pub fn error_to(ingress: u32, destination: &str) -> Packet {
    let port = Port::of(ingress);
    let ours = if destination.contains(':') { port.address6 } else { port.address4 };
    let answered = arriving(ingress, destination, ours);
    let to = answered.build();
    let mut mac = [0; 6];
    mac.copy_from_slice(&to[6..12]);
    let packet = Packet::between(ours, destination).macs(port.mac(1), mac);
    if destination.contains(':') { packet } else { packet.traffic_class(0xc0).df() }
}

/// The IP packet quoted: `bytes` of it at most, whole words.
pub fn quoted(packet: &Packet, bytes: usize) -> Vec<u8> {
    let frame = packet.build();
    let quote = forwarder_kit::packet::quote(&frame, bytes);
    quote[..quote.len() / 4 * 4].to_vec()
}
