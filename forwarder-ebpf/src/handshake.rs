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
    let step = match signal & (SYN | ACK | RST) {
        SYN if is_reopening(signal, before) => {
            if is_originators {
                Step::Begins
            } else {
                Step::Turned
            }
        }
        SYN => {
            if is_originators {
                Step::Repeated
            } else {
                Step::Crossed
            }
        }
        signal if signal == SYN | ACK && !is_originators => Step::Answered,
        ACK if is_originators && awaits_ack => Step::Completed,
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
