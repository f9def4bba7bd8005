//! Fragments: the first of a train has the ports and names the flow; the others follow it for a short time.
//!
//! A fragment that comes before its first cannot be decided and is dropped under its own reason (RFC 4787 REQ-14 asks for
//! more; see README "Limits"). Those for the host itself are the host's to reassemble.

use crate::abi::{FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6, Ticks};
use crate::tables::{FragmentTable, Tables};
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;

#[inline(always)]
fn key4(packet: &Packet4) -> FragmentKey4 {
    FragmentKey4 {
        source: packet.key.source,
        destination: packet.key.destination,
        id: packet.id,
        protocol: packet.key.protocol,
        side: packet.key.side,
        zero: 0,
    }
}

#[inline(always)]
fn key6(packet: &Packet6) -> FragmentKey6 {
    FragmentKey6 {
        source: packet.key.source,
        destination: packet.key.destination,
        id: packet.id,
        side: packet.key.side,
        zero: [0; 3],
    }
}

/// A first fragment passes.
#[inline(always)]
pub(crate) fn remember4<T: Tables>(tables: &T, packet: &Packet4, now: Ticks) {
    tables.remember(&key4(packet), &FragmentOwner4 { key: packet.key, since: now, zero: 0 });
}

/// A first fragment passes.
#[inline(always)]
pub(crate) fn remember6<T: Tables>(tables: &T, packet: &Packet6, now: Ticks) {
    tables.remember(&key6(packet), &FragmentOwner6 { key: packet.key, since: now, zero: 0 });
}

/// Gives a later fragment the key of its flow. False when the first has not been seen within `lifetime` ticks.
#[inline(always)]
pub(crate) fn adopt4<T: Tables>(tables: &T, packet: &mut Packet4, now: Ticks, lifetime: Ticks) -> bool {
    match FragmentTable::<FragmentKey4, FragmentOwner4>::owner(tables, &key4(packet)) {
        Some(owner) if now.wrapping_sub(owner.since) <= lifetime => {
            packet.key = owner.key;
            true
        }
        _ => false,
    }
}

/// Gives a later fragment the key of its flow. False when the first has not been seen within `lifetime` ticks.
#[inline(always)]
pub(crate) fn adopt6<T: Tables>(tables: &T, packet: &mut Packet6, now: Ticks, lifetime: Ticks) -> bool {
    match FragmentTable::<FragmentKey6, FragmentOwner6>::owner(tables, &key6(packet)) {
        Some(owner) if now.wrapping_sub(owner.since) <= lifetime => {
            packet.key = owner.key;
            true
        }
        _ => false,
    }
}
