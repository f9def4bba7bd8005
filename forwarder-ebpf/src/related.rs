//! ICMP errors about a known flow: they travel with the flow, translated outside and inside (RFC 5508 §4, RFC 4884 left
//! untouched). They neither create nor refresh a flow.
//!
//! An error quotes a packet that went the other way, so the quoted tuple reversed is the key of the flow entry in whose
//! direction the error travels. Checksums are changed in place: an error that was wrong stays wrong, and its receiver
//! drops it (RFC 5508 REQ-3 asks the NAT to; the effect is the same).

use crate::abi::firewall::switch;
use crate::abi::{FlowEntry, FlowKey, FlowKey4, FlowKey6};
use crate::firewall::goes_on_by_default;
use crate::flow::{Packet, without_flow};
use crate::frame::Frame;
use crate::nat;
use crate::rewrite;
use crate::route::{Arrival, way_out};
use crate::tables::{FlowTable, Tables};
use crate::verdict::{Drop, Verdict};
use crate::wire::checksum::{Delta, apply, apply_udp};
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;
use crate::wire::{ETHERNET, icmp, ipv4, ipv6, protocol};

/// The packet that an ICMP error quotes.
struct Quoted {
    /// Offset of its IP header in the frame.
    l3: usize,
    /// Offset of its transport header in the frame.
    l4: usize,
    /// Key of packets that travel as the error does.
    key: FlowKey4,
}

/// The quotation of an ICMP error. `None` when it is too short to say whom it is about.
#[inline(always)]
fn quoted4<F: Frame>(frame: &mut F, packet: &Packet4) -> Option<Quoted> {
    let l3 = packet.l4() + icmp::HEADER;
    let header = *frame.at::<{ ipv4::HEADER }>(l3)?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    let l4 = l3 + header_bytes;
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4 || header_bytes < ipv4::HEADER || l4 + 8 > ETHERNET + packet.total as usize || offset != 0 {
        return None;
    }
    let start = *frame.at::<8>(l4)?;
    let (sport, dport) = match (header[9], start[0]) {
        (protocol::TCP | protocol::UDP, _) => ([start[0], start[1]], [start[2], start[3]]),
        (protocol::ICMP, icmp::v4::ECHO) => ([start[4], start[5]], [0; 2]),
        (protocol::ICMP, icmp::v4::ECHO_REPLY) => ([0; 2], [start[4], start[5]]),
        (protocol::ICMP, _) => return None,
        _ => ([0; 2], [0; 2]),
    };
    let key = FlowKey4 {
        source: [header[16], header[17], header[18], header[19]],
        destination: [header[12], header[13], header[14], header[15]],
        source_port: dport,
        destination_port: sport,
        protocol: header[9],
        side: packet.key.side,
        zero: [0; 2],
    };
    Some(Quoted { l3, l4, key })
}

/// An ICMP error: with its flow, or to the host, or nowhere.
#[inline(always)]
pub(crate) fn related4<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>, packet: &Packet4) -> Verdict {
    let Some(quoted) = quoted4(frame, packet) else { return without_flow(tables, at, packet, Drop::IcmpUnrelated) };
    // An error goes to who sent what it quotes; else it could be led past the routes by another's flow.
    if packet.key.destination != quoted.key.destination {
        return without_flow(tables, at, packet, Drop::IcmpUnrelated);
    }
    let Some(entry) = FlowTable::<FlowKey4>::flow(tables, &quoted.key) else {
        return without_flow(tables, at, packet, Drop::IcmpUnrelated);
    };
    if let Some(end) = leave(tables, at, packet, (&quoted.key, entry)) {
        return end;
    }
    if nat::is_translated(entry) {
        let Some(inner) = write_quoted4(frame, packet, &quoted, entry) else { return Verdict::Drop(Drop::Malformed) };
        let Some(sum) = frame.at::<2>(packet.l4() + icmp::CHECKSUM) else { return Verdict::Drop(Drop::Malformed) };
        *sum = apply(*sum, inner);
    }
    if write_outer4(frame, packet, &quoted, entry).is_none() {
        return Verdict::Drop(Drop::Malformed);
    }
    rewrite::send(frame, tables, entry)
}

/// Whether a flow whose epoch is over in this direction may go on. Rules are not asked about an error: they were, about the
/// packet that it quotes, if that passed since. Else the error is from before; the next packet draws another.
#[inline(always)]
fn is_still_allowed<K: FlowKey, T: Tables + FlowTable<K>>(
    tables: &T,
    at: &Arrival<'_>,
    key: &K,
    entry: &FlowEntry,
) -> bool {
    if at.control.firewall & switch::RULES != 0 {
        let quoted = tables.flow(&key.partner(entry));
        return quoted.is_some_and(|quoted| quoted.epoch.load() == at.control.epoch as u16);
    }
    goes_on_by_default(at, at.side_entered(entry))
}

/// Checks that hold for both families before an error leaves with its flow. `Some` ends it.
#[inline(always)]
fn leave<P: Packet, T: Tables + FlowTable<P::Key>>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    (key, entry): (&P::Key, &FlowEntry),
) -> Option<Verdict> {
    if entry.epoch.load() != at.control.epoch as u16 {
        if !is_still_allowed(tables, at, key, entry) {
            return Some(Verdict::Drop(Drop::IcmpUnrelated));
        }
        match way_out(tables, at, packet, Some(entry)) {
            Ok(way) if way.side == entry.partner_side() => {
                entry.next_hop.store(way.hop.pack());
                entry.mtu.store(way.mtu);
            }
            Ok(_) => return Some(Verdict::Drop(Drop::IcmpUnrelated)),
            Err(end) => return Some(end),
        }
    }
    if packet.hops() <= 1 {
        return Some(Verdict::Drop(Drop::TtlExceeded));
    }
    (packet.total() > u32::from(entry.mtu.load())).then_some(Verdict::Drop(Drop::TooBig))
}

/// Translates the quotation; the change of the ICMP checksum that it makes.
#[inline(always)]
fn write_quoted4<F: Frame>(frame: &mut F, packet: &Packet4, quoted: &Quoted, entry: &FlowEntry) -> Option<u16> {
    let key = &quoted.key;
    let addresses = Delta::default().address(key.destination, entry.destination()).address(key.source, entry.source());
    let header = frame.at::<{ ipv4::HEADER }>(quoted.l3)?;
    let old = [header[10], header[11]];
    let new = apply(old, addresses.finish());
    [header[10], header[11]] = new;
    [header[12], header[13], header[14], header[15]] = entry.destination();
    [header[16], header[17], header[18], header[19]] = entry.source();
    let outer = addresses.word(old, new);
    Some(write_quoted_transport(frame, packet, quoted, entry, addresses)?.plus(outer).finish())
}

/// Translates the ports and checksum of the quotation, as far as it goes; the change of the ICMP checksum that it makes.
/// `addresses` is the change that a checksum over the addresses sees.
#[inline(always)]
fn write_quoted_transport<F: Frame>(
    frame: &mut F,
    packet: &Packet4,
    quoted: &Quoted,
    entry: &FlowEntry,
    addresses: Delta,
) -> Option<Delta> {
    let key = &quoted.key;
    // One of an echo's two ports is no field; the other is the identifier. The one that is none does not change.
    let ports = Delta::default()
        .word(key.destination_port, entry.destination_port())
        .word(key.source_port, entry.source_port());
    let whole = addresses.plus(ports).finish();
    match key.protocol {
        protocol::TCP => {
            let start = frame.at::<4>(quoted.l4)?;
            [start[0], start[1]] = entry.destination_port();
            [start[2], start[3]] = entry.source_port();
            if quoted.l4 + 18 > ETHERNET + packet.total as usize {
                return Some(ports);
            }
            let sum = frame.at::<2>(quoted.l4 + 16)?;
            let (old, new) = (*sum, apply(*sum, whole));
            *sum = new;
            Some(ports.word(old, new))
        }
        protocol::UDP => {
            let start = frame.at::<8>(quoted.l4)?;
            [start[0], start[1]] = entry.destination_port();
            [start[2], start[3]] = entry.source_port();
            let (old, new) = ([start[6], start[7]], apply_udp([start[6], start[7]], whole));
            [start[6], start[7]] = new;
            Some(ports.word(old, new))
        }
        protocol::ICMP => {
            let start = frame.at::<8>(quoted.l4)?;
            let request = start[0] == icmp::v4::ECHO;
            let (was, is) = if request {
                (key.destination_port, entry.destination_port())
            } else {
                (key.source_port, entry.source_port())
            };
            let (old, new) = ([start[2], start[3]], apply([start[2], start[3]], ports.finish()));
            [start[2], start[3]] = new;
            [start[4], start[5]] = is;
            Some(Delta::default().word(old, new).word(was, is))
        }
        _ => Some(Delta::default()),
    }
}

/// Translates the outer header. A router on the way speaks with the NAT's address when the flow's packets do (RFC 5508
/// REQ-5).
#[inline(always)]
fn write_outer4<F: Frame>(frame: &mut F, packet: &Packet4, quoted: &Quoted, entry: &FlowEntry) -> Option<()> {
    let source = if entry.source() == quoted.key.source { packet.key.source } else { entry.source() };
    let destination =
        if entry.destination() == quoted.key.destination { packet.key.destination } else { entry.destination() };
    let delta = Delta::default()
        .address(packet.key.source, source)
        .address(packet.key.destination, destination)
        .ttl_step()
        .finish();
    let header = frame.at::<{ ETHERNET + ipv4::HEADER }>(0)?;
    header[22] = header[22].wrapping_sub(1);
    [header[24], header[25]] = apply([header[24], header[25]], delta);
    [header[26], header[27], header[28], header[29]] = source;
    [header[30], header[31], header[32], header[33]] = destination;
    Some(())
}

/// Key of packets that travel as the ICMPv6 error does, read from its quotation.
#[inline(always)]
fn quoted6<F: Frame>(frame: &mut F, packet: &Packet6) -> Option<FlowKey6> {
    const NEXT_IS_FRAGMENT: u8 = 44;
    let l3 = packet.l4 + icmp::HEADER;
    let header = *frame.at::<{ ipv6::HEADER }>(l3)?;
    let mut l4 = l3 + ipv6::HEADER;
    let mut next = header[6];
    if next == NEXT_IS_FRAGMENT {
        let fragment = frame.at::<8>(l4)?;
        if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
            return None;
        }
        next = fragment[0];
        l4 += 8;
    }
    if header[0] >> 4 != 6 || l4 + 8 > ETHERNET + packet.total as usize {
        return None;
    }
    let start = *frame.at::<8>(l4)?;
    let mut key = FlowKey6 { protocol: next, side: packet.key.side, ..FlowKey6::default() };
    key.source.copy_from_slice(header.get(24..40)?);
    key.destination.copy_from_slice(header.get(8..24)?);
    match (next, start[0]) {
        (protocol::TCP | protocol::UDP, _) => {
            key.source_port = [start[2], start[3]];
            key.destination_port = [start[0], start[1]];
        }
        (protocol::ICMPV6, icmp::v6::ECHO) => key.destination_port = [start[4], start[5]],
        (protocol::ICMPV6, icmp::v6::ECHO_REPLY) => key.source_port = [start[4], start[5]],
        (protocol::ICMPV6, _) => return None,
        _ => {}
    }
    Some(key)
}

/// An ICMPv6 error: with its flow, or to the host, or nowhere. Nothing in it is translated.
#[inline(always)]
pub(crate) fn related6<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>, packet: &Packet6) -> Verdict {
    let Some(key) = quoted6(frame, packet) else { return without_flow(tables, at, packet, Drop::IcmpUnrelated) };
    if packet.key.destination != key.destination {
        return without_flow(tables, at, packet, Drop::IcmpUnrelated);
    }
    let Some(entry) = FlowTable::<FlowKey6>::flow(tables, &key) else {
        return without_flow(tables, at, packet, Drop::IcmpUnrelated);
    };
    if let Some(end) = leave(tables, at, packet, (&key, entry)) {
        return end;
    }
    if !packet.write(frame) {
        return Verdict::Drop(Drop::Malformed);
    }
    rewrite::send(frame, tables, entry)
}
