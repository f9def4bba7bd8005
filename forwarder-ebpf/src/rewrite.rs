//! The last step: every decision is taken, the frame is written and counted in its flow.

use crate::abi::{FlowEntry, NextHop};
use crate::flow::Packet;
use crate::frame::Frame;
use crate::route::Arrival;
use crate::tables::Tables;
use crate::verdict::{Drop, Verdict};
use crate::wire::{put, take};

/// Writes the frame as the entry says, counts it there, and sends it out.
#[inline(always)]
pub(crate) fn forward<P: Packet, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    entry: &FlowEntry,
) -> Verdict {
    if !packet.write(frame, entry) {
        return Verdict::Drop(Drop::Malformed);
    }
    entry.packets.add(1);
    entry.bytes.add(u64::from(packet.total()));
    entry.last_seen.store(at.now);
    send(frame, tables, entry)
}

/// Gives the frame its link-layer addresses and its way out.
#[inline(always)]
pub(crate) fn send<F: Frame, T: Tables>(frame: &mut F, tables: &T, entry: &FlowEntry) -> Verdict {
    let hop = NextHop::unpack(entry.next_hop.load());
    let Some(egress) = tables.iface(u32::from(hop.ifindex)) else { return Verdict::Drop(Drop::Internal) };
    match write_addresses(frame, hop.mac, &egress.mac) {
        Some(()) => Verdict::Forward(egress.slot),
        None => Verdict::Drop(Drop::Malformed),
    }
}

/// Both addresses in two stores.
#[inline(always)]
fn write_addresses<F: Frame>(frame: &mut F, to: [u8; 6], from: &[u8; 6]) -> Option<()> {
    let header = frame.at::<12>(0)?;
    let ([a, b, c, d, e, f], [x, y]) = (to, take::<2>(from, 0)?);
    put(header, 0, [a, b, c, d, e, f, x, y])?;
    put(header, 8, take::<4>(from, 2)?)
}
