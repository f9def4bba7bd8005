//! Connections that an end has lost, on whose tuple it begins again: what it and the other end say then is believed, resets
//! included, though by its numbers it could be of nobody who was there before. Whole packets through the sim.

#[allow(dead_code, reason = "shared with the golden cases, which use more of it")]
mod golden {
    pub mod world;
}

use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::verdict::{Drop, Verdict};
use forwarder_kit::packet::flag::{ACK, RST, SYN};
use golden::world::{
    ARM, ARM_PUBLIC, ARM_SERVER, CLIENT, CLIENT6, GUEST, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving,
};

/// A connection whose client is inside, by what its packets have when they arrive: interface, source, destination.
#[derive(Clone, Copy)]
struct Way {
    client: (u32, &'static str, &'static str),
    server: (u32, &'static str, &'static str),
}

const TRANSLATED: Way = Way { client: (IN, CLIENT, SERVER), server: (OUT, SERVER, PUBLIC) };
const IPV6: Way = Way { client: (IN, CLIENT6, SERVER6), server: (OUT, SERVER6, CLIENT6) };
const ONE_ARMED: Way = Way { client: (ARM, GUEST, ARM_SERVER), server: (ARM, ARM_SERVER, ARM_PUBLIC) };
const ALL: [Way; 3] = [TRANSLATED, IPV6, ONE_ARMED];

/// Where the two ends begin, and where they begin the second time.
const FIRST: (u32, u32) = (1_000_000_000, 2_000_000_000);
const SECOND: (u32, u32) = (3_000_000_000, 500_000_000);

struct Connection {
    sim: Sim,
    way: Way,
}

impl Connection {
    fn open(way: Way) -> Self {
        let connection = Self { sim: World::default().sim(), way };
        connection.shake_hands(FIRST);
        connection
    }

    fn shake_hands(&self, (client, server): (u32, u32)) {
        self.client(SYN, client);
        self.server(SYN | ACK, server);
        self.client(ACK, client + 1);
    }

    fn client(&self, flags: u8, sequence: u32) {
        let verdict = self.send(self.way.client, (4000, 80), flags, sequence);
        assert!(matches!(verdict, Verdict::Forward(_)), "client, {flags:#x} {sequence}: {verdict:?}");
    }

    fn server(&self, flags: u8, sequence: u32) {
        let verdict = self.server_sends(flags, sequence);
        assert!(matches!(verdict, Verdict::Forward(_)), "server, {flags:#x} {sequence}: {verdict:?}");
    }

    fn server_sends(&self, flags: u8, sequence: u32) -> Verdict {
        self.send(self.way.server, (80, 4000), flags, sequence)
    }

    fn send(&self, from: (u32, &str, &str), ports: (u16, u16), flags: u8, sequence: u32) -> Verdict {
        let (ingress, source, destination) = from;
        let packet = arriving(ingress, source, destination).tcp(ports.0, ports.1, flags, sequence);
        self.sim.process(&packet.build(), ingress, 1).verdict
    }
}

#[test]
fn a_server_that_has_lost_it_refuses() {
    for way in ALL {
        Connection::open(way).server(RST | ACK, 0);
        let asked = Connection::open(way);
        asked.client(SYN, SECOND.0);
        asked.server(RST | ACK, 0);
    }
}

#[test]
fn both_begin_again_and_either_ends_it() {
    for way in ALL {
        let again = || {
            let connection = Connection::open(way);
            connection.shake_hands(SECOND);
            connection
        };
        again().client(RST, SECOND.0 + 1);
        again().server(RST, SECOND.1 + 1);
    }
}

#[test]
fn the_outside_cannot_say_that_it_begins_again() {
    for way in ALL {
        let connection = Connection::open(way);
        connection.server(SYN, SECOND.1);
        connection.server(SYN | ACK, SECOND.1);
        assert_eq!(connection.server_sends(RST, SECOND.1 + 1), Verdict::Drop(Drop::ResetWindow));
        connection.server(RST, FIRST.1 + 1);
    }
}
