//! Connections that an end has lost, on whose tuple it begins again: what it and the other end say then is believed, resets
//! included, though by its numbers it could be of nobody who was there before. Whole packets through the sim.

use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::verdict::{Drop, Verdict};
use forwarder_golden::ends::{End, Ends};
use forwarder_golden::world::World;
use forwarder_kit::packet::flag::{ACK, RST, SYN};

/// Where the two ends begin, and where they begin the second time.
const FIRST: (u32, u32) = (1_000_000_000, 2_000_000_000);
const SECOND: (u32, u32) = (3_000_000_000, 500_000_000);

struct Connection {
    sim: Sim,
    ends: Ends,
}

impl Connection {
    fn open(ends: Ends) -> Self {
        let connection = Self { sim: World::default().sim(), ends };
        connection.shake_hands(FIRST);
        connection
    }

    fn shake_hands(&self, (client, server): (u32, u32)) {
        self.client(SYN, client);
        self.server(SYN | ACK, server);
        self.client(ACK, client + 1);
    }

    fn client(&self, flags: u8, sequence: u32) {
        let verdict = self.ends.send(&self.sim, End::Originator, flags, sequence);
        assert!(matches!(verdict, Verdict::Forward(_)), "client, {flags:#x} {sequence}: {verdict:?}");
    }

    fn server(&self, flags: u8, sequence: u32) {
        let verdict = self.server_sends(flags, sequence);
        assert!(matches!(verdict, Verdict::Forward(_)), "server, {flags:#x} {sequence}: {verdict:?}");
    }

    fn server_sends(&self, flags: u8, sequence: u32) -> Verdict {
        self.ends.send(&self.sim, End::Responder, flags, sequence)
    }
}

#[test]
fn a_server_that_has_lost_it_refuses() {
    for ends in Ends::ALL {
        Connection::open(ends).server(RST | ACK, 0);
        let asked = Connection::open(ends);
        asked.client(SYN, SECOND.0);
        asked.server(RST | ACK, 0);
    }
}

#[test]
fn both_begin_again_and_either_ends_it() {
    for ends in Ends::ALL {
        let again = || {
            let connection = Connection::open(ends);
            connection.shake_hands(SECOND);
            connection
        };
        again().client(RST, SECOND.0 + 1);
        again().server(RST, SECOND.1 + 1);
    }
}

#[test]
fn the_outside_cannot_say_that_it_begins_again() {
    for ends in Ends::ALL {
        let connection = Connection::open(ends);
        connection.server(SYN, SECOND.1);
        connection.server(SYN | ACK, SECOND.1);
        assert_eq!(connection.server_sends(RST, SECOND.1 + 1), Verdict::Drop(Drop::ResetWindow));
        connection.server(RST, FIRST.1 + 1);
    }
}
