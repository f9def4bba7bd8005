//! Handshakes through the sim, each packet at its microsecond: what is then known of the round trips, from either entry. That
//! the kernel's programs measure in the same cases is `golden`'s to show, that they measure the right time `netns_rtt`'s.

use forwarder_ebpf::abi::{FlowEntry, FlowKey, RoundTrips};
use forwarder_ebpf::sim::{Flows, Sim};
use forwarder_ebpf::verdict::Verdict;
use forwarder_golden::ends::End::{self, Originator, Responder};
use forwarder_golden::ends::Ends;
use forwarder_golden::world::World;
use forwarder_kit::packet::flag::{ACK, FIN, RST, SYN};

/// What is known after these packets: flags, and the microsecond.
fn after(ends: Ends, loose: bool, packets: &[(End, u8, u32)]) -> RoundTrips {
    let world = World::default();
    let sim = world.with(|control| (control.loose_tcp, control.outside_allowed) = (u8::from(loose), 1)).sim();
    for (number, (from, flags, at)) in packets.iter().enumerate() {
        sim.set_clock_us(*at);
        let verdict = ends.send(&sim, *from, *flags, 7);
        assert!(matches!(verdict, Verdict::Forward(_)), "packet {number} from the {from:?}: {verdict:?}");
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
    for ends in Ends::ALL {
        assert_eq!(after(ends, false, &HANDSHAKE), trips(20, 60));
        assert_eq!(after(ends, false, &HANDSHAKE[..2]), trips(0, 60));
        assert_eq!(after(ends, false, &HANDSHAKE[..1]), trips(0, 0));
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
    for ends in Ends::ALL {
        for count in 0..=more.len() {
            assert_eq!(after(ends, false, &[&HANDSHAKE[..], &more[..count]].concat()), trips(20, 60), "{count} more");
        }
    }
}

#[test]
fn what_is_sent_again_is_not_measured() {
    let syn = [(Originator, SYN, 1000), (Originator, SYN, 2000), (Responder, SYN | ACK, 2060), (Originator, ACK, 2080)];
    let answer =
        [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Responder, SYN | ACK, 2060), (Originator, ACK, 2080)];
    for ends in Ends::ALL {
        assert_eq!(after(ends, false, &syn), trips(20, 0));
        assert_eq!(after(ends, false, &answer), trips(0, 60));
    }
}

#[test]
fn data_may_complete_a_handshake_and_a_reset_does_not() {
    let reset = [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Originator, RST, 1080)];
    let closed = [(Originator, SYN, 1000), (Responder, SYN | ACK, 1060), (Originator, FIN | ACK, 1080)];
    let refused = [(Originator, SYN, 1000), (Responder, RST | ACK, 1060)];
    for ends in Ends::ALL {
        assert_eq!(after(ends, false, &reset), trips(0, 60));
        assert_eq!(after(ends, false, &closed), trips(20, 60));
        assert_eq!(after(ends, false, &refused), trips(0, 0));
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
    Ends::ALL.into_iter().for_each(|ends| assert_eq!(after(ends, false, &both), trips(0, 0)));
}

#[test]
fn a_tuple_that_is_used_again_is_measured_again() {
    let again =
        [(Originator, RST, 2000), (Originator, SYN, 3000), (Responder, SYN | ACK, 3007), (Originator, ACK, 3009)];
    for ends in Ends::ALL {
        let all = [&HANDSHAKE[..], &again].concat();
        assert_eq!(after(ends, false, &all[..5]), trips(0, 0), "the one before is forgotten");
        assert_eq!(after(ends, false, &all), trips(2, 7));
    }
}

/// Of what the originator says then, too little is watched.
#[test]
fn a_connection_that_the_responder_begins_anew_is_not_measured() {
    let turned =
        [(Originator, RST, 2000), (Responder, SYN, 3000), (Originator, SYN | ACK, 3007), (Responder, ACK, 3009)];
    for ends in Ends::ALL {
        for count in 2..=turned.len() {
            assert_eq!(after(ends, false, &[&HANDSHAKE[..], &turned[..count]].concat()), trips(0, 0));
        }
    }
}

#[test]
fn what_was_picked_up_in_mid_stream_has_no_handshake() {
    let stream = [(Originator, ACK, 1000), (Responder, ACK, 1060), (Originator, ACK, 1080)];
    Ends::ALL.into_iter().for_each(|ends| assert_eq!(after(ends, true, &stream), trips(0, 0)));
}
