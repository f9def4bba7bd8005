//! Both ends of one connection, for dialogues in which only who speaks and what matters.

use crate::world::{ARM, ARM_PUBLIC, ARM_SERVER, CLIENT, CLIENT6, GUEST, IN, OUT, PUBLIC, SERVER, SERVER6, arriving};
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::verdict::Verdict;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who begins the connection, inside.
    Originator,
    /// Who is asked.
    Responder,
}

/// A connection by what its packets have when they arrive: interface, source, destination.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The originator's.
    pub out: (u32, &'static str, &'static str),
    /// The responder's.
    pub back: (u32, &'static str, &'static str),
}

impl Ends {
    /// IPv4 from inside to outside, which is translated.
    pub const TRANSLATED: Self = Self { out: (IN, CLIENT, SERVER), back: (OUT, SERVER, PUBLIC) };
    /// IPv6, which is not.
    pub const IPV6: Self = Self { out: (IN, CLIENT6, SERVER6), back: (OUT, SERVER6, CLIENT6) };
    /// IPv4 by the interface that serves both sides.
    pub const ONE_ARMED: Self = Self { out: (ARM, GUEST, ARM_SERVER), back: (ARM, ARM_SERVER, ARM_PUBLIC) };
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TRANSLATED, Self::IPV6, Self::ONE_ARMED];

    /// Has an end send a TCP segment without data; what the core decides about it.
    pub fn send(&self, sim: &Sim, from: End, flags: u8, sequence: u32) -> Verdict {
        let ((ingress, source, destination), (source_port, destination_port)) = match from {
            End::Originator => (self.out, (4000, 80)),
            End::Responder => (self.back, (80, 4000)),
        };
        let packet = arriving(ingress, source, destination).tcp(source_port, destination_port, flags, sequence);
        sim.process(&packet.build(), ingress, 1).verdict
    }
}
