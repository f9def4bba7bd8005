//! A packet and its flow: known, or new. One logic for both families; what differs stands in `v4` and `v6`.

mod v4;
mod v6;

use crate::abi::firewall::switch;
use crate::abi::{Birth, FlowEntry, FlowKey, SharedU32, Ticks, status};
use crate::answer::{Problem, ask};
use crate::conntrack::{self, Change};
use crate::firewall::{self, Ends, Filtered};
use crate::frame::Frame;
use crate::handshake;
use crate::limits;
use crate::rewrite;
use crate::route::{Arrival, Path, Way, way_out};
use crate::sequence;
use crate::tables::{Answer, FlowTable, Judged, Refused, Route, Tables};
use crate::verdict::{Drop, Pass, Stage, Verdict};
use crate::wire::tcp_flags::{RST, SYN};
use crate::wire::{Fragment, protocol};

/// What flow logic needs to know of a packet, whatever its family.
pub(crate) trait Packet: Filtered {
    /// Key of its flow entry.
    type Key: Ends;
    /// Stage for packets that have a flow.
    const FLOW: Stage;
    /// Stage that makes its flow.
    const NEW: Stage;
    /// Stage that answers it.
    const ANSWER: Stage;

    /// Key of its flow entry.
    fn key(&self) -> &Self::Key;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    /// IP packet, bytes.
    fn total(&self) -> u32;
    /// TCP flags that state looks at, or `status::SIGNAL`.
    fn signal(&self) -> u8;
    /// TCP sequence number.
    fn sequence(&self) -> u32;
    /// Place in its datagram.
    fn fragment(&self) -> Fragment;
    /// Routers may fragment it.
    fn may_be_fragmented(&self) -> bool;
    /// An ICMP error about it is allowed.
    fn may_be_answered(&self) -> bool;
    /// The ICMP error for a problem.
    fn answer(&self, problem: Problem, reason: Drop) -> Answer;
    /// What the FIB says.
    fn route<T: Tables>(&self, tables: &T, ingress: u32, entry: Option<&FlowEntry>) -> Route;
    /// Writes what the entry changes.
    fn write<F: Frame>(&self, frame: &mut F, entry: &FlowEntry) -> bool;
    /// Notes a first fragment.
    fn remember<T: Tables>(&self, tables: &T, now: Ticks);
    /// Makes the flow's two entries, or ends the packet.
    fn open<T: Tables>(&self, tables: &T, at: &Arrival<'_>, way: &Way) -> Result<(), Verdict>;
}

/// A packet of a known flow, off the fast path. `None`: the flow turned out to be gone or to be made anew.
#[inline(always)]
pub(crate) fn known<P: Packet, F: Frame, T: Tables + FlowTable<P::Key>>(
    frame: &mut F,
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    entry: &FlowEntry,
) -> Option<Verdict> {
    let is_old = entry.epoch.load() != at.control.epoch as u16;
    let is_tcp = packet.key().protocol() == protocol::TCP && packet.fragment() != Fragment::Later;
    // Where rules have to be asked first, this packet comes again.
    let comes_again = is_old && must_ask::<P::Key, T>(tables, at, entry);
    let is_placing_again = is_tcp && conntrack::is_placing_again(entry, packet.signal());
    let is_about_birth = is_placing_again || (is_tcp && packet.signal() & (SYN | RST) != 0);
    let birth = if !comes_again && (is_old || is_about_birth) {
        FlowTable::<P::Key>::birth(tables, packet.key())
    } else {
        None
    };
    if is_tcp && packet.signal() & RST != 0 && is_invented(packet, entry, birth) {
        return Some(Verdict::Drop(Drop::ResetWindow));
    }
    if is_old && let Some(end) = refresh(tables, at, packet, (entry, birth)) {
        return end;
    }
    if firewall::has_impossible_flags(packet) {
        return Some(Verdict::Drop(Drop::TcpFlags));
    }
    if packet.hops() <= 1 {
        return Some(ask(tables, packet, Problem::TimeExceeded, Drop::TtlExceeded));
    }
    let mtu = entry.mtu.load();
    if packet.total() > u32::from(mtu) {
        return Some(too_big(tables, packet, mtu));
    }
    if conntrack::is_turned(packet.key().protocol(), entry, packet.signal())
        && let Some(end) = may_turn(tables, at, packet)
    {
        return Some(end);
    }
    if let Some(birth) = birth
        && is_tcp
    {
        if is_placing_again {
            sequence::remember_again::<P::Key>(birth, entry, packet.sequence());
        } else if conntrack::is_placing(birth, entry, packet.signal()) {
            sequence::remember::<P::Key>(birth, entry, packet.sequence());
        }
    }
    let before = entry.status.load();
    if conntrack::note(tables, packet.key(), entry, packet.signal(), at.now) == Change::Orphaned {
        tables.remove_flow(packet.key());
        return None;
    }
    limits::note_replied::<P::Key, T>(tables, at, entry, before);
    if is_tcp {
        handshake::note(tables, packet.key(), entry, (before, packet.signal()));
    }
    if packet.fragment() == Fragment::First {
        packet.remember(tables, at.now);
    }
    Some(rewrite::forward(frame, tables, at, packet, entry))
}

/// Whether a reset is not of who it says. Where nothing is known it is believed, and so is the number 0: with it answers who
/// has never heard of the connection (RFC 9293 §3.10.7.1).
#[inline(always)]
fn is_invented<P: Packet>(packet: &P, entry: &FlowEntry, birth: Option<&Birth>) -> bool {
    packet.sequence() != 0
        && birth.is_some_and(|birth| !sequence::may_be_its::<P::Key>(birth, entry, packet.sequence()))
}

/// Whether a responder may begin a closing connection anew. `Some` ends the packet, or has the firewall asked.
#[inline(always)]
fn may_turn<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P) -> Option<Verdict> {
    if at.control.firewall & switch::RULES == 0 {
        return firewall::begin_by_default(tables, at, packet);
    }
    (tables.judged().stands & Judged::TURNS == 0).then_some(Verdict::Next(P::FIREWALL))
}

#[inline(always)]
fn too_big<P: Packet, T: Tables>(tables: &T, packet: &P, mtu: u16) -> Verdict {
    let reason = if packet.may_be_fragmented() { Drop::FragmentationNeeded } else { Drop::TooBig };
    ask(tables, packet, Problem::TooBig(mtu), reason)
}

/// The stage `Firewall` has to say whether the packet's flow may go on, and has not been asked yet.
#[inline(always)]
fn must_ask<K: FlowKey, T: Tables>(tables: &T, at: &Arrival<'_>, entry: &FlowEntry) -> bool {
    let has_to_look = firewall::has_to_look(at, at.side_entered(entry), K::FAMILY);
    (at.control.firewall & switch::RULES != 0 || has_to_look) && tables.judged().stands & Judged::GOES_ON == 0
}

/// Routes or policy moved since the flow was last looked at: asks both again. `Some` ends the packet, or (inner `None`)
/// gives up the flow.
#[inline(always)]
fn refresh<P: Packet, T: Tables + FlowTable<P::Key>>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    (entry, birth): (&FlowEntry, Option<&Birth>),
) -> Option<Option<Verdict>> {
    let entered = at.side_entered(entry);
    if must_ask::<P::Key, T>(tables, at, entry) {
        return Some(Some(Verdict::Next(P::FIREWALL)));
    }
    if at.control.firewall & switch::RULES == 0 && !firewall::goes_on_by_default(at, entered) {
        remove(tables, packet.key(), entry);
        return Some(Some(Verdict::Drop(Drop::Policy)));
    }
    match way_out(tables, at, packet, Some(entry)) {
        Ok(way) if way.side == entry.partner_side() => {
            entry.next_hop.store(way.hop.pack());
            entry.mtu.store(way.mtu);
            if let Some(birth) = birth {
                birth.set_ingress(at.iface.slot);
                // The one that allows it now: the one before may be gone, and its number another's.
                birth.rule.store(at.rule);
            }
            entry.epoch.store(at.control.epoch as u16);
            None
        }
        // It now leaves on another side: what was translated may not be any more, and the other way round.
        Ok(_) => {
            remove(tables, packet.key(), entry);
            Some(None)
        }
        Err(end) => Some(Some(end)),
    }
}

#[inline(always)]
pub(crate) fn remove<K: FlowKey, T: FlowTable<K>>(tables: &T, key: &K, entry: &FlowEntry) {
    tables.remove_flow(key);
    tables.remove_flow(&key.partner(entry));
}

/// A packet that can neither have nor begin a flow: the host's own, one that the kernel may route on, or dropped for `reason`.
#[inline(always)]
pub(crate) fn without_flow<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P, reason: Drop) -> Verdict {
    match Path::of(tables, at, packet, None).left_to_host() {
        Some(Pass::Host) => Verdict::Pass(Pass::Host),
        // Rules would have to know ports, which it has not.
        Some(why) if at.control.firewall & switch::ASKS == 0 && firewall::by_default(tables, at, packet).is_none() => {
            Verdict::Pass(why)
        }
        _ => Verdict::Drop(reason),
    }
}

/// A packet that belongs to no known flow: decides, and makes the flow. `None` when it now has one.
#[inline(always)]
pub(crate) fn admit<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P) -> Option<Verdict> {
    let judged = tables.judged();
    let is_judged = judged.stands & Judged::BEGINS != 0;
    if !is_judged && at.control.firewall & switch::ASKS != 0 {
        return Some(Verdict::Next(P::FIREWALL));
    }
    let path = if is_judged { Path::found(tables, judged.route) } else { Path::of(tables, at, packet, None) };
    let left = path.left_to_host();
    if left == Some(Pass::Host) {
        return Some(Verdict::Pass(Pass::Host));
    }
    // Also before the kernel routes it to an interface that is not served: that it forwards at all is our doing.
    if !is_judged && let Some(end) = firewall::begin_by_default(tables, at, packet) {
        return Some(end);
    }
    if let Some(why) = left {
        return Some(Verdict::Pass(why));
    }
    if firewall::has_impossible_flags(packet) {
        return Some(Verdict::Drop(Drop::TcpFlags));
    }
    let way = match path.take(tables, at, packet) {
        Ok(way) => way,
        Err(end) => return Some(end),
    };
    if packet.hops() <= 1 {
        return Some(ask(tables, packet, Problem::TimeExceeded, Drop::TtlExceeded));
    }
    if packet.total() > u32::from(way.mtu) {
        return Some(too_big(tables, packet, way.mtu));
    }
    // What begins no flow is not counted as one of its source's.
    if conntrack::begin(packet.key().protocol(), packet.signal(), at.control.loose_tcp != 0).is_none() {
        return Some(Verdict::Drop(Drop::NoFlow));
    }
    if let Err(reason) = limits::refuse(tables, at, packet.key()) {
        return Some(Verdict::Drop(reason));
    }
    match packet.open(tables, at, &way) {
        Ok(()) => {
            limits::note_opened::<P::Key, T>(tables, at.iface.side);
            None
        }
        Err(Verdict::Drop(reason @ (Drop::NatExhausted | Drop::TableFull))) => {
            Some(ask(tables, packet, Problem::Prohibited, reason))
        }
        Err(end) => Some(end),
    }
}

/// A fresh entry that leaves by `way`; translation is filled in by the caller.
#[inline(always)]
fn fresh_entry(at: &Arrival<'_>, bits: u32, partner_side: u8) -> FlowEntry {
    FlowEntry {
        last_seen: SharedU32::new(at.now),
        status: SharedU32::new(with_partner(bits, partner_side)),
        ..FlowEntry::default()
    }
}

/// Status bits of an entry whose answers enter by `side`.
#[inline(always)]
fn with_partner(bits: u32, side: u8) -> u32 {
    bits | u32::from(side) << status::PARTNER_SHIFT
}

/// How a flow's entries come to be.
#[inline(always)]
fn birth(at: &Arrival<'_>) -> Birth {
    Birth::new(at.now, at.rule, at.iface.slot)
}

/// The responder's way back is not known yet: an epoch that never is makes its first packet ask.
#[inline(always)]
fn set_way(entry: &FlowEntry, at: &Arrival<'_>, way: Option<&Way>) {
    match way {
        Some(way) => {
            entry.next_hop.store(way.hop.pack());
            entry.mtu.store(way.mtu);
            entry.epoch.store(at.control.epoch as u16);
        }
        None => entry.epoch.store((at.control.epoch as u16).wrapping_sub(1)),
    }
}

/// Inserts the originator's entry after the responder's, or undoes the latter. Another CPU that was faster wins: its
/// entries serve this packet too.
#[inline(always)]
fn insert_second<K: FlowKey, T: FlowTable<K>>(
    tables: &T,
    (key, entry): (&K, &FlowEntry),
    birth: &Birth,
    first: &K,
) -> Result<(), Refused> {
    match tables.insert_flow(key, entry, birth) {
        Ok(()) => Ok(()),
        Err(refused) => {
            tables.remove_flow(first);
            if refused == Refused::Exists { Ok(()) } else { Err(refused) }
        }
    }
}

/// What becomes of a packet whose flow could not be inserted. `taken`: what it means that the responder's key is taken.
#[inline(always)]
fn end_refused<P: Packet>(refused: Refused, taken: Verdict) -> Verdict {
    match refused {
        Refused::Full => Verdict::Drop(Drop::TableFull),
        // The stage begins again; the kernel's limit of tail calls is the bound.
        Refused::Busy => Verdict::Next(P::NEW),
        Refused::Exists => taken,
    }
}
