//! Round trips towards both ends of a TCP connection, measured from its handshake in passing.
//!
//! ```text
//! originator          here          responder
//!     |------ SYN ----->|------------->|
//!     |                 |  round trip  |   Handshake::responder
//!     |<----------------|<-- SYN-ACK --|
//!     |   round trip    |              |   Handshake::originator
//!     |------ ACK ----->|------------->|
//!
//!                    SYN       SYN-ACK              ACK
//! responder   --> RUNNING  --> MEASURED             -
//!                  | SYN again
//!                  '-> UNKNOWN
//! originator  --> IDLE     --> RUNNING          --> MEASURED
//!                               | SYN-ACK again
//!                               '-> UNKNOWN
//! ```
//!
//! What was sent twice is not measured: which of the two was answered cannot be told (Karn's algorithm, RFC 6298 §3). Nor is a
//! simultaneous open, nor what was picked up in mid-stream. All three packets are off the fast path anyhow, so that
//! established traffic pays nothing; and only they read the precise clock.
//!
//! Cells are found by a hash, and a new connection takes its cell from an older one (`abi::Handshake`): there is no room for
//! this in a flow entry, which is one cache line. A word changes by compare-and-exchange; who is too late changes nothing.

use crate::abi::{FlowEntry, FlowKey, Handshake, Place, SharedU64, phase, status};
use crate::conntrack::is_reopening;
use crate::tables::{FlowTable, Tables};
use crate::wire::protocol;
use crate::wire::tcp_flags::{ACK, RST, SYN};

const SYN_ACK: u8 = SYN | ACK;

/// What a packet is to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// The first SYN of a connection.
    Begins,
    /// A SYN of the originator that comes again.
    Repeated,
    /// A SYN-ACK of the responder.
    Answered,
    /// An ACK of the originator, to complete it.
    Completed,
    /// The responder sends a SYN as well.
    Crossed,
    /// The responder begins the connection anew: of what it says after that, too little is watched.
    Turned,
}

/// A packet has begun a connection.
#[inline(always)]
pub(crate) fn begin<K: FlowKey, T: Tables + FlowTable<K>>(tables: &T, key: &K, signal: u8) {
    if key.protocol() == protocol::TCP && signal == SYN {
        take_cell(tables, FlowTable::<K>::hash(tables, key), Step::Begins);
    }
}

/// A TCP packet of a known connection; `before` were its entry's bits before it.
#[inline(always)]
pub(crate) fn note<K: FlowKey, T: Tables + FlowTable<K>>(
    tables: &T,
    key: &K,
    entry: &FlowEntry,
    (before, signal): (u32, u8),
) {
    let is_originators = before & status::ORIGINATOR != 0;
    let awaits_ack = before & (status::REPLIED | status::ESTABLISHED) == status::REPLIED;
    let reopens = is_reopening(signal, before);
    let step = match (signal & (SYN | ACK | RST), is_originators) {
        (SYN, true) if reopens => Step::Begins,
        (SYN, false) if reopens => Step::Turned,
        (SYN, true) => Step::Repeated,
        (SYN, false) => Step::Crossed,
        (SYN_ACK, false) => Step::Answered,
        (ACK, true) if awaits_ack => Step::Completed,
        _ => return,
    };
    let hash = FlowTable::<K>::hash(tables, &if is_originators { *key } else { key.partner(entry) });
    take_cell(tables, hash, step);
}

#[inline(always)]
fn take_cell<T: Tables>(tables: &T, hash: u64, step: Step) {
    let place = Place::of(hash);
    if let Some(cell) = tables.handshake(place.index) {
        take(cell, place, step, tables.clock_us());
    }
}

/// What a step changes in a connection's cell at this time, microseconds.
#[inline(always)]
fn take(cell: &Handshake, place: Place, step: Step, now: u32) {
    let Handshake { responder, originator } = cell;
    match step {
        Step::Begins => {
            originator.store(place.word(phase::IDLE, 0));
            responder.store(place.word(phase::RUNNING, now));
        }
        Step::Turned => {
            originator.store(place.word(phase::UNKNOWN, 0));
            responder.store(place.word(phase::UNKNOWN, 0));
        }
        Step::Repeated => advance(responder, place, (phase::RUNNING, phase::UNKNOWN), now),
        Step::Answered => {
            advance(responder, place, (phase::RUNNING, phase::MEASURED), now);
            let word = originator.load();
            let next = if place.is_in(phase::IDLE, word) { phase::RUNNING } else { phase::UNKNOWN };
            if next == phase::RUNNING || place.is_in(phase::RUNNING, word) {
                originator.exchange(word, place.word(next, now));
            }
        }
        Step::Completed => advance(originator, place, (phase::RUNNING, phase::MEASURED), now),
        Step::Crossed => {
            advance(responder, place, (phase::RUNNING, phase::UNKNOWN), now);
            advance(originator, place, (phase::IDLE, phase::UNKNOWN), now);
            advance(originator, place, (phase::RUNNING, phase::UNKNOWN), now);
        }
    }
}

/// From one phase to another, if the word is in the one. What is measured is the time since it began to run.
#[inline(always)]
fn advance(word: &SharedU64, place: Place, (from, to): (u64, u64), now: u32) {
    let old = word.load();
    if !place.is_in(from, old) {
        return;
    }
    let elapsed = now.wrapping_sub(old as u32);
    let (to, micros) = match to {
        // Longer than a record's field can say, or so it seems: no handshake takes half an hour.
        phase::MEASURED if elapsed > i32::MAX as u32 => (phase::UNKNOWN, 0),
        // Zero means that it is not known.
        phase::MEASURED => (to, if elapsed == 0 { 1 } else { elapsed }),
        _ => (to, 0),
    };
    word.exchange(old, place.word(to, micros));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{FlowKey4, HANDSHAKES, RoundTrips};
    use crate::sim::Sim;
    use Step::{Answered, Begins, Completed, Crossed, Repeated, Turned};
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    const OWN: Place = Place::of(1);

    fn trips(originator_us: u32, responder_us: u32) -> RoundTrips {
        RoundTrips { originator_us, responder_us }
    }

    /// A cell after these steps of one connection, each at its time.
    fn after(steps: &[(Step, u32)]) -> Handshake {
        let cell = Handshake::default();
        steps.iter().for_each(|(step, now)| take(&cell, OWN, *step, *now));
        cell
    }

    /// What a cell tells of a connection, which is nothing if it is another's.
    fn told(cell: &Handshake, place: Place) -> RoundTrips {
        cell.round_trips(place).unwrap_or_default()
    }

    /// What is known after these steps.
    fn known(steps: &[(Step, u32)]) -> RoundTrips {
        told(&after(steps), OWN)
    }

    #[test]
    fn each_end_is_measured_by_its_answer() {
        assert_eq!(known(&[(Begins, 100)]), trips(0, 0));
        assert_eq!(known(&[(Begins, 100), (Answered, 160)]), trips(0, 60));
        assert_eq!(known(&[(Begins, 100), (Answered, 160), (Completed, 180)]), trips(20, 60));
    }

    #[test]
    fn no_time_at_all_is_a_microsecond() {
        assert_eq!(known(&[(Begins, 9), (Answered, 9), (Completed, 9)]), trips(1, 1));
    }

    #[test]
    fn the_clock_may_come_round() {
        assert_eq!(known(&[(Begins, u32::MAX - 4), (Answered, 5), (Completed, 7)]), trips(2, 10));
    }

    #[test]
    fn what_a_record_cannot_say_is_not_known() {
        let longest = i32::MAX as u32;
        assert_eq!(known(&[(Begins, 3), (Answered, 3 + longest), (Completed, 4 + longest)]), trips(1, longest));
        assert_eq!(known(&[(Begins, 3), (Answered, 4 + longest), (Completed, 5 + longest)]), trips(1, 0));
        assert_eq!(known(&[(Begins, 3), (Answered, 2)]), trips(0, 0), "a clock that went back");
    }

    #[test]
    fn a_repeated_syn_hides_the_responder_only() {
        let again = [(Begins, 0), (Repeated, 1000), (Answered, 1060), (Completed, 1080)];
        assert_eq!(known(&again), trips(20, 0));
        let crossing = [(Begins, 0), (Answered, 60), (Repeated, 61), (Completed, 80)];
        assert_eq!(known(&crossing), trips(20, 60), "it was answered before");
    }

    #[test]
    fn a_repeated_syn_ack_hides_the_originator_only() {
        assert_eq!(known(&[(Begins, 0), (Answered, 60), (Answered, 1060), (Completed, 1080)]), trips(0, 60));
        assert_eq!(
            known(&[(Begins, 0), (Answered, 60), (Answered, 70), (Answered, 80), (Completed, 90)]),
            trips(0, 60)
        );
        assert_eq!(known(&[(Begins, 0), (Answered, 60), (Completed, 80), (Answered, 90)]), trips(20, 60), "too late");
    }

    #[test]
    fn a_stray_ack_measures_nothing() {
        assert_eq!(known(&[(Begins, 0), (Completed, 5), (Answered, 60)]), trips(0, 60));
        assert_eq!(known(&[(Begins, 0), (Answered, 60), (Completed, 80), (Completed, 500)]), trips(20, 60));
        assert_eq!(known(&[(Completed, 5), (Answered, 6), (Repeated, 7)]), trips(0, 0), "nothing began");
    }

    #[test]
    fn a_simultaneous_open_is_not_measured() {
        assert_eq!(known(&[(Begins, 0), (Crossed, 5), (Answered, 60), (Completed, 80)]), trips(0, 0));
        assert_eq!(known(&[(Begins, 0), (Answered, 5), (Crossed, 6), (Completed, 80)]), trips(0, 5));
        assert_eq!(
            known(&[(Begins, 0), (Answered, 5), (Completed, 7), (Crossed, 9)]),
            trips(2, 5),
            "anybody can send a SYN"
        );
    }

    #[test]
    fn a_new_connection_on_the_same_tuple_is_measured_anew() {
        let first = [(Begins, 0), (Answered, 60), (Completed, 80)];
        let second = [(Begins, 200), (Answered, 230), (Completed, 237)];
        assert_eq!(known(&[first, second].concat()), trips(7, 30));
        assert_eq!(known(&[&first[..], &[(Begins, 200)]].concat()), trips(0, 0));
        assert_eq!(known(&[&first[..], &[(Turned, 200), (Answered, 230), (Completed, 231)]].concat()), trips(0, 0));
    }

    #[test]
    fn who_has_lost_its_cell_neither_reads_nor_changes_it() {
        let other = Place { mark: OWN.word(0, 0) ^ 1 << 40, ..OWN };
        let cell = after(&[(Begins, 0), (Answered, 60)]);
        take(&cell, other, Begins, 100);
        assert_eq!((cell.round_trips(OWN), cell.round_trips(other)), (None, Some(trips(0, 0))));
        for step in [Completed, Answered, Repeated, Crossed] {
            take(&cell, OWN, step, 110);
        }
        take(&cell, other, Answered, 130);
        take(&cell, other, Completed, 140);
        assert_eq!((told(&cell, OWN), told(&cell, other)), (trips(0, 0), trips(10, 30)));
    }

    #[test]
    fn half_a_cell_is_never_taken_for_the_others() {
        let other = Place { mark: OWN.word(0, 0) ^ 1 << 63, ..OWN };
        // Another CPU has written one word, and not yet the other.
        let cell = after(&[(Begins, 0), (Answered, 60), (Completed, 80)]);
        cell.originator.store(other.word(phase::IDLE, 0));
        assert_eq!((told(&cell, OWN), told(&cell, other)), (trips(0, 60), trips(0, 0)));
        take(&cell, other, Answered, 100);
        take(&cell, other, Completed, 107);
        assert_eq!((told(&cell, OWN), told(&cell, other)), (trips(0, 60), trips(7, 0)));
    }

    /// Two CPUs with one connection in one cell: both of its answers, or two connections that want it.
    #[test]
    fn whatever_two_cpus_do_at_once_nothing_false_is_measured() {
        let other = Place { mark: OWN.word(0, 0) ^ 1 << 50, ..OWN };
        for round in 0..2000 {
            let cell = after(&[(Begins, 1000)]);
            let barrier = Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    take(&cell, OWN, Answered, 1060);
                    take(&cell, OWN, Completed, 1080);
                });
                barrier.wait();
                if round % 2 == 0 {
                    take(&cell, OWN, Answered, 1070);
                } else {
                    take(&cell, other, Begins, 1040);
                    take(&cell, other, Answered, 1047);
                    take(&cell, other, Completed, 1050);
                }
            });
            let own = told(&cell, OWN);
            if round % 2 == 0 {
                assert!([60, 70].contains(&own.responder_us), "{own:?}");
                // By the first SYN-ACK, or by the second when it overtook the first, or by none.
                assert!([0, 10, 20].contains(&own.originator_us), "{own:?}");
            } else {
                assert_eq!((own, told(&cell, other)), (trips(0, 0), trips(3, 7)));
            }
        }
    }

    #[test]
    fn places_are_spread_and_told_apart() {
        let sim = Sim::new();
        let key =
            |port: u16| FlowKey4 { source_port: port.to_be_bytes(), protocol: protocol::TCP, ..FlowKey4::default() };
        let place = |port| Place::of(sim.flows4.hash(&key(port)));
        let places: BTreeSet<_> = (0..10_000).map(place).map(|place| (place.index, place.mark)).collect();
        let cells: BTreeSet<_> = places.iter().map(|(index, _)| index).collect();
        assert_eq!(places.len(), 10_000);
        // By chance, 10,000 fill 9,630 of 131,072.
        assert!(cells.len() > 9500, "{} cells", cells.len());
        assert!(places.iter().all(|(index, mark)| *index < HANDSHAKES && mark << 30 == 0));
    }
}
