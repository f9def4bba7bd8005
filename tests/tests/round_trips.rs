//! Handshakes through the sim, each packet at its microsecond: what is then known of the round trips, from either entry. That
//! the kernel's programs measure in the same cases is `golden`'s to show, that they measure the right time `netns_rtt`'s.

#[allow(dead_code, reason = "shared with the golden cases, which use more of it")]
mod golden {
    pub mod world;
}

use forwarder_ebpf::abi::{FlowEntry, FlowKey, RoundTrips};
use forwarder_ebpf::sim::{Flows, Sim};
use forwarder_ebpf::verdict::Verdict;
use forwarder_kit::packet::flag::{ACK, FIN, RST, SYN};
use golden::world::{
    ARM, ARM_PUBLIC, ARM_SERVER, CLIENT, CLIENT6, GUEST, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving,
};

/// One connection's way through: interface, source and destination of each direction.
#[derive(Clone, Copy)]
struct Way {
    out: (u32, &'static str, &'static str),
    back: (u32, &'static str, &'static str),
}

const TRANSLATED: Way = Way { out: (IN, CLIENT, SERVER), back: (OUT, SERVER, PUBLIC) };
const IPV6: Way = Way { out: (IN, CLIENT6, SERVER6), back: (OUT, SERVER6, CLIENT6) };
const ONE_ARMED: Way = Way { out: (ARM, GUEST, ARM_SERVER), back: (ARM, ARM_SERVER, ARM_PUBLIC) };
const ALL: [Way; 3] = [TRANSLATED, IPV6, ONE_ARMED];

/// Who sends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Originator,
    Responder,
}
use End::{Originator, Responder};

/// What is known after these packets: flags, and the microsecond.
fn after(way: Way, loose: bool, packets: &[(End, u8, u32)]) -> RoundTrips {
    let world = World::default();
    let sim = world.with(|control| (control.loose_tcp, control.outside_allowed) = (u8::from(loose), 1)).sim();
    for (number, (from, flags, at)) in packets.iter().enumerate() {
        sim.set_clock_us(*at);
        let (ingress, source, destination) = if *from == Originator { way.out } else { way.back };
        let ports = if *from == Originator { (4000, 80) } else { (80, 4000) };
        let packet = arriving(ingress, source, destination).tcp(ports.0, ports.1, *flags, 7);
        let verdict = sim.process(&packet.build(), ingress, 1).verdict;
        assert!(matches!(verdict, Verdict::Forward(_)), "packet {number} from {source}: {verdict:?}");
    }
    let known = [of_entries(&sim, &sim.flows4), of_entries(&sim, &sim.flows6)].concat();
    assert_eq!(known.len(), 2, "two entries");
    assert_eq!(known[0], known[1], "both know the same");
    known[0].unwrap_or_default()
}

fn of_entries<K: FlowKey + Default + Ord>(sim: &Sim, flows: &Flows<K>) -> Vec<Option<RoundTrips>> {
    let all: Vec<(K, &FlowEntry)> = flows.all();
    all.iter().map(|(key, entry)| sim.round_trips(flows, key, entry)).collect()
}

fn trips(originator_us: u32, responder_us: u32) -> RoundTrips {
    RoundTrips { originator_us, responder_us }
}

const HANDSHAKE: [(End, u8, u32); 3] = [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Originator, ACK, 1080)];

#[test]
fn a_handshake_tells_both() {
    for way in ALL {
        assert_eq!(after(way, false, &HANDSHAKE), trips(20, 60));
        assert_eq!(after(way, false, &HANDSHAKE[..2]), trips(0, 60));
        assert_eq!(after(way, false, &HANDSHAKE[..1]), trips(0, 0));
    }
}

#[test]
fn what_comes_after_it_changes_nothing() {
    let more = [
        (Originator, ACK, 2000),
        (Responder, ACK, 2100),
        (Responder, SYN, 2150),
        (Responder, SYN | ACK, 2200),
        (Originator, SYN, 2300),
        (Originator, FIN | ACK, 2400),
        (Responder, FIN | ACK, 2500),
        (Originator, ACK, 2600),
        (Responder, RST | ACK, 2700),
    ];
    for way in ALL {
        for count in 0..=more.len() {
            assert_eq!(after(way, false, &[&HANDSHAKE[..], &more[..count]].concat()), trips(20, 60), "{count} more");
        }
    }
}

#[test]
fn what_is_sent_again_is_not_measured() {
    let syn = [(Originator, SYN, 1000), (Originator, SYN, 2000), (Responder, SYN | ACK, 2060), (Originator, ACK, 2080)];
    let answer =
        [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Responder, SYN | ACK, 2060), (Originator, ACK, 2080)];
    for way in ALL {
        assert_eq!(after(way, false, &syn), trips(20, 0));
        assert_eq!(after(way, false, &answer), trips(0, 60));
    }
}

#[test]
fn data_may_complete_a_handshake_and_a_reset_does_not() {
    let reset = [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Originator, RST, 1080)];
    let closed = [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Originator, FIN | ACK, 1080)];
    let refused = [(Originator, SYN, 1000), (Responder, RST | ACK, 1060)];
    for way in ALL {
        assert_eq!(after(way, false, &reset), trips(0, 60));
        assert_eq!(after(way, false, &closed), trips(20, 60));
        assert_eq!(after(way, false, &refused), trips(0, 0));
    }
}

#[test]
fn who_opens_at_once_with_the_other_is_not_measured() {
    let both = [
        (Originator, SYN, 1000),
        (Responder, SYN, 1030),
        (Originator, SYN | ACK, 1050),
        (Responder, SYN | ACK, 1060),
        (Originator, ACK, 1080),
    ];
    ALL.into_iter().for_each(|way| assert_eq!(after(way, false, &both), trips(0, 0)));
}

#[test]
fn a_tuple_that_is_used_again_is_measured_again() {
    let again =
        [(Originator, RST, 2000), (Originator, SYN, 3000), (Responder, SYN | ACK, 3007), (Originator, ACK, 3009)];
    for way in ALL {
        let all = [&HANDSHAKE[..], &again].concat();
        assert_eq!(after(way, false, &all[..5]), trips(0, 0), "the one before is forgotten");
        assert_eq!(after(way, false, &all), trips(2, 7));
    }
}

/// Of what the originator says then, too little is watched.
#[test]
fn a_connection_that_the_responder_begins_anew_is_not_measured() {
    let turned =
        [(Originator, RST, 2000), (Responder, SYN, 3000), (Originator, SYN | ACK, 3007), (Responder, ACK, 3009)];
    for way in ALL {
        for count in 2..=turned.len() {
            assert_eq!(after(way, false, &[&HANDSHAKE[..], &turned[..count]].concat()), trips(0, 0));
        }
    }
}

#[test]
fn what_was_picked_up_in_mid_stream_has_no_handshake() {
    let stream = [(Originator, ACK, 1000), (Responder, ACK, 1060), (Originator, ACK, 1080)];
    ALL.into_iter().for_each(|way| assert_eq!(after(way, true, &stream), trips(0, 0)));
}
