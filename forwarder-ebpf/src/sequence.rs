//! Where each direction of a TCP connection stands in its sequence space, as far as that can be had for nothing: so that a
//! reset that somebody invents does not end the connection (RFC 5961 §1.1 describes the attack, RFC 9293 §3.5.2 the check).
//!
//! The fast path does not look at sequence numbers. It counts packets and bytes, and what a direction has sent is the one
//! without the headers of the other. So it is enough to remember now and then how far its sequence numbers are from that
//! count: nine bits, in units of 8 MiB, which its `Birth` has to spare. A reset is rare, goes the slow way anyhow, and there
//! its number is compared with what the count says:
//!
//! ```text
//!      drift            window   unit   window
//! <----------------- ... <-----[ place + count ]-----> ...
//! ```
//!
//! The count is too high by TCP options and by what was sent again, never too low by more than what got lost before us. It
//! therefore counts as high by 24 bytes a packet and an eighth of all bytes since the direction was placed, `drift`. It is
//! placed by its first packet, and again in the sweeper's passes once there were 65,536 to 131,072: it has the next one look
//! (`is_due`). So a quiet connection takes one in 120 invented resets, a busy one about one in 60, with a million packets
//! between two passes one in 16, however long it lives. When nobody sweeps, it becomes one in 25 after a gigabyte, and after
//! some ten nothing is refused any more (until `Packets` comes round, after 2^32). The receiver's own, exact check comes behind
//! this one.

use crate::abi::{Birth, FlowEntry, FlowKey, Packets};

/// Sequence numbers that a `Birth` does not tell apart.
const UNIT: u32 = 1 << UNIT_SHIFT;
/// 2^32 in nine bits.
const UNIT_SHIFT: u32 = 32 - 9;
/// How far the ends of a connection may be apart, and more than hosts make their windows (Linux: `tcp_rmem`, 6 MiB by
/// default until kernel 6.17).
const WINDOW: u32 = 12 << 20;
/// TCP options of a packet, bytes: time stamps are 12, acknowledgements of single blocks (SACK) up to 28 more.
const OPTIONS: u64 = 24;
/// Part of all bytes that may have been sent more than once.
const AGAIN: u64 = 8;
/// A count that may be as wrong as this says nothing.
const MOST_DRIFT: u64 = 1 << 31;

/// Headers of a packet without options, bytes: IP and TCP.
#[inline(always)]
fn headers<K: FlowKey>() -> u32 {
    if K::FAMILY as u32 == 0 { 20 + 20 } else { 40 + 20 }
}

/// What the direction has sent, as counted.
#[inline(always)]
fn sent<K: FlowKey>(entry: &FlowEntry) -> u32 {
    (entry.bytes.load() as u32).wrapping_sub((entry.packets.load() as u32).wrapping_mul(headers::<K>()))
}

/// By how much that may be too high.
#[inline(always)]
fn drift(entry: &FlowEntry) -> u64 {
    let since_begun = OPTIONS * entry.packets.load() + entry.bytes.load() / AGAIN;
    let since_placed = (OPTIONS + u64::from(entry.mtu.load()) / AGAIN) * entry.packets.since_placed();
    since_begun.min(since_placed)
}

/// Remembers where a direction begins, by the sequence number of its first packet.
#[inline(always)]
pub(crate) fn begin(birth: &Birth, sequence: u32) {
    birth.set_place((sequence >> UNIT_SHIFT) as u16);
}

/// Remembers where a direction stands, by the sequence number of its packet; `entry` has not counted that packet yet.
#[inline(always)]
pub(crate) fn remember<K: FlowKey>(birth: &Birth, entry: &FlowEntry, sequence: u32) {
    // In this order: who looks in between sees more drift than there is.
    birth.set_place((sequence.wrapping_sub(sent::<K>(entry)) >> UNIT_SHIFT) as u16);
    entry.packets.place();
}

/// Remembers it anew, unless the packet cannot be of the direction's sender: who invents resets can invent others before.
#[inline(always)]
pub(crate) fn remember_again<K: FlowKey>(birth: &Birth, entry: &FlowEntry, sequence: u32) {
    if may_be_its::<K>(birth, entry, sequence) {
        remember::<K>(birth, entry, sequence);
    }
}

/// Whether it is time for that, or nothing is known yet of a direction that has packets.
pub(crate) fn is_due(birth: &Birth, entry: &FlowEntry) -> bool {
    entry.packets.since_placed() >= 2 * Packets::IN_A_UNIT || (!birth.is_placed() && entry.packets.load() != 0)
}

/// Whether a packet with this sequence number can be of the direction's sender. Where nothing is known it is believed.
#[inline(always)]
pub(crate) fn may_be_its<K: FlowKey>(birth: &Birth, entry: &FlowEntry, sequence: u32) -> bool {
    let drift = drift(entry);
    if !birth.is_placed() || drift >= MOST_DRIFT {
        return true;
    }
    let below = drift as u32 + WINDOW;
    let place = (u32::from(birth.place()) << UNIT_SHIFT).wrapping_add(sent::<K>(entry));
    sequence.wrapping_sub(place.wrapping_sub(below)) <= below + UNIT + WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{FlowKey4, FlowKey6};

    const MIB: u32 = 1 << 20;

    /// A direction that began with this number and has sent so many packets, of so many bytes each, with these options.
    fn direction<K: FlowKey>(first: u32, packets: u32, payload: u32, options: u32) -> (Birth, FlowEntry, u32) {
        let (birth, entry) = (Birth::default(), FlowEntry::default());
        entry.mtu.store(1500);
        remember::<K>(&birth, &entry, first);
        entry.packets.add(packets.into());
        entry.bytes.add(u64::from(packets) * u64::from(payload + options + headers::<K>()));
        (birth, entry, first.wrapping_add(packets.wrapping_mul(payload)))
    }

    fn takes<K: FlowKey>((birth, entry, next): &(Birth, FlowEntry, u32), off: i64) -> bool {
        may_be_its::<K>(birth, entry, next.wrapping_add(off as u32))
    }

    #[test]
    fn the_true_number_is_taken_wherever_it_wraps_and_far_ones_are_not() {
        for first in [0, 1, 7 * MIB, 0x7fff_fff0, 0xffff_fff0, 0xff80_0000] {
            for (packets, payload, options) in [(0, 0, 0), (3, 0, 20), (1000, 1448, 12), (1 << 20, 0, 12)] {
                let v4 = direction::<FlowKey4>(first, packets, payload, options);
                let v6 = direction::<FlowKey6>(first, packets, payload, options);
                let window = i64::from(WINDOW);
                for off in [0, 1, -1, window, -window] {
                    assert!(takes::<FlowKey4>(&v4, off) && takes::<FlowKey6>(&v6, off), "{first} {packets} {off}");
                }
                for off in [64, 256, 1024, 2048, -64, -256, -1024] {
                    let off = off * i64::from(MIB);
                    assert!(!takes::<FlowKey4>(&v4, off) && !takes::<FlowKey6>(&v6, off), "{first} {packets} {off}");
                }
            }
        }
    }

    #[test]
    fn of_the_whole_space_a_quiet_connection_takes_one_part_in_a_hundred_and_twenty() {
        let quiet = direction::<FlowKey4>(1_234_567_890, 10_000, 100, 12);
        let taken = (0..4096).filter(|part| takes::<FlowKey4>(&quiet, part * i64::from(MIB))).count();
        assert!((24..=34).contains(&taken), "{taken} of 4096 MiB");
        let busy = direction::<FlowKey4>(1_234_567_890, 1 << 20, 1024, 12);
        let taken = (0..4096).filter(|part| takes::<FlowKey4>(&busy, part * i64::from(MIB))).count();
        assert!((150..=200).contains(&taken), "{taken} of 4096 MiB");
    }

    #[test]
    fn what_was_sent_again_and_what_nobody_can_know_is_taken() {
        let again = direction::<FlowKey4>(5, 1_000_000, 1448, 12);
        assert!(takes::<FlowKey4>(&again, -(1448 * 1_000_000 / 10)), "a tenth was sent twice");
        let long = direction::<FlowKey4>(5, 1 << 24, 1448, 12);
        assert!(takes::<FlowKey4>(&long, 1 << 31), "24 GiB");
        let (birth, entry) = (Birth::default(), FlowEntry::default());
        entry.mtu.store(1500);
        assert!(may_be_its::<FlowKey4>(&birth, &entry, 77), "nothing was sent yet");
        remember::<FlowKey4>(&birth, &entry, 77 << 24);
        assert!(!may_be_its::<FlowKey4>(&birth, &entry, 77));
        birth.forget_place();
        assert!(may_be_its::<FlowKey4>(&birth, &entry, 77));
    }

    #[test]
    fn placed_now_and_then_a_busy_connection_is_as_safe_as_a_quiet_one() {
        let (birth, entry, mut next) = direction::<FlowKey4>(u32::MAX / 3, 0, 0, 0);
        for round in 0..100_000 {
            // One packet in twenty again, and options in all of them.
            entry.packets.add(1000);
            entry.bytes.add(1000 * (1448 + 12 + 40));
            next = next.wrapping_add(950 * 1448);
            assert!(may_be_its::<FlowKey4>(&birth, &entry, next), "round {round}");
            if is_due(&birth, &entry) {
                remember_again::<FlowKey4>(&birth, &entry, next);
                assert!(!is_due(&birth, &entry), "round {round}");
            }
        }
        let direction = (birth, entry, next);
        let taken = (0..4096).filter(|part| takes::<FlowKey4>(&direction, part * i64::from(MIB))).count();
        assert!((30..=80).contains(&taken), "{taken} of 4096 MiB");
    }

    #[test]
    fn who_invents_packets_moves_nothing() {
        let known = direction::<FlowKey4>(7, 1000, 1448, 12);
        for off in [64, 2048, -1024] {
            remember_again::<FlowKey4>(&known.0, &known.1, known.2.wrapping_add((off * i64::from(MIB)) as u32));
            assert!(takes::<FlowKey4>(&known, 0), "{off}");
        }
    }

    #[test]
    fn what_was_picked_up_is_due_once_it_has_packets() {
        let (birth, entry) = (Birth::default(), FlowEntry::default());
        assert!(!is_due(&birth, &entry));
        entry.packets.add(1);
        assert!(is_due(&birth, &entry));
        remember_again::<FlowKey4>(&birth, &entry, 1);
        assert!(!is_due(&birth, &entry));
    }
}
