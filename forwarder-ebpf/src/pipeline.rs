//! The order of things: which stage a frame enters, and what each stage may hand over to.

use crate::abi::firewall::switch;
use crate::abi::{FlowEntry, FlowKey4, FlowKey6, Ticks};
use crate::flow::{self, Packet};
use crate::frame::Frame;
use crate::route::Arrival;
use crate::tables::{FlowTable, Tables};
use crate::verdict::{Drop, Pass, Stage, Verdict};
use crate::wire::ipv6::Unreadable;
use crate::wire::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, Transport, ipv4, ipv6, take};
use crate::{answer, firewall, fragment, handshake, related, reset, rewrite};

/// Every frame begins here. Forwards the plain packets of known flows; all others are passed, or handed to a stage.
///
/// `ingress` is the interface index, `now` the time of arrival.
#[inline(always)]
pub fn enter<F: Frame, T: Tables>(frame: &mut F, tables: &T, ingress: u32, now: Ticks) -> Verdict {
    let (Some(iface), Some(control)) = (tables.iface(ingress), tables.control()) else {
        return Verdict::Pass(Pass::Unserved);
    };
    if iface.side == 0 {
        return Verdict::Pass(Pass::Unserved);
    }
    let Some(header) = frame.at::<ETHERNET>(0) else { return Verdict::Drop(Drop::Malformed) };
    if take::<4>(header, 0) != take(&iface.mac, 0) || take::<2>(header, 4) != take(&iface.mac, 4) {
        return Verdict::Pass(Pass::NotToUs);
    }
    let at = Arrival { ingress, now, iface, control, rule: 0 };
    match [header[12], header[13]] {
        ETHERTYPE_IPV4 => fast4(frame, tables, &at),
        ETHERTYPE_IPV6 => fast6(frame, tables, &at),
        _ => Verdict::Pass(Pass::NotIp),
    }
}

/// Nothing about this packet needs more than its flow entry. A signal of zero is TCP without a flag that means anything.
#[inline(always)]
fn is_plain<P: Packet>(packet: &P, entry: &FlowEntry, epoch: u32) -> bool {
    entry.epoch.load() == epoch as u16
        && packet.signal() != 0
        && u32::from(packet.signal()) & entry.status.load() == 0
        && packet.hops() > 1
        && packet.total() <= u32::from(entry.mtu.load())
}

#[inline(always)]
fn fast4<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Verdict {
    if let Some(packet) = ipv4::parse_plain(frame, at.iface.side)
        && let Some(entry) = FlowTable::<FlowKey4>::flow(tables, &packet.key)
        && is_plain(&packet, entry, at.control.epoch)
    {
        return rewrite::forward(frame, tables, at, &packet, entry);
    }
    Verdict::Next(Stage::Flow4)
}

#[inline(always)]
fn fast6<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Verdict {
    if let Some(packet) = ipv6::parse_plain(frame, at.iface.side)
        && let Some(entry) = FlowTable::<FlowKey6>::flow(tables, &packet.key)
        && is_plain(&packet, entry, at.control.epoch)
    {
        return rewrite::forward(frame, tables, at, &packet, entry);
    }
    Verdict::Next(Stage::Flow6)
}

/// Runs one stage behind `enter`.
#[inline(always)]
pub fn stage<F: Frame, T: Tables>(which: Stage, frame: &mut F, tables: &T, ingress: u32, now: Ticks) -> Verdict {
    let (Some(iface), Some(control)) = (tables.iface(ingress), tables.control()) else {
        return Verdict::Drop(Drop::Internal);
    };
    let at = Arrival { ingress, now, iface, control, rule: tables.judged().rule };
    match which {
        Stage::Flow4 => flow4(frame, tables, &at),
        Stage::Flow6 => flow6(frame, tables, &at),
        Stage::New4 => match parsed4(frame, tables, iface.side) {
            Ok(packet) => new_flow(frame, tables, &at, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::New6 => match parsed6(frame, tables, iface.side) {
            Ok(packet) => new_flow(frame, tables, &at, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Related4 => match parsed4(frame, tables, iface.side) {
            Ok(packet) => related::related4(frame, tables, &at, &packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Related6 => match parsed6(frame, tables, iface.side) {
            Ok(packet) => related::related6(frame, tables, &at, &packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Firewall4 => match adopted4(frame, tables, &at) {
            Ok(packet) => firewall::judge(frame, tables, &at, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Firewall6 => match adopted6(frame, tables, &at) {
            Ok(packet) => firewall::judge(frame, tables, &at, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Match4 => firewall::find(tables, &at, &STAGES4, true),
        Stage::Match6 => firewall::find(tables, &at, &STAGES6, false),
        Stage::Refuse4 => match adopted4(frame, tables, &at) {
            Ok(packet) => firewall::end(tables, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Refuse6 => match adopted6(frame, tables, &at) {
            Ok(packet) => firewall::end(tables, &*packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Reset4 => match parsed4(frame, tables, iface.side) {
            Ok(packet) => reset::build4(frame, tables, &at, &packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Reset6 => match parsed6(frame, tables, iface.side) {
            Ok(packet) => reset::build6(frame, tables, &at, &packet),
            Err(reason) => Verdict::Drop(reason),
        },
        Stage::Answer4 => answer::build4(frame, tables, iface, control, now),
        Stage::Answer6 => answer::build6(frame, tables, iface, control, now),
        // Those know the verdict already and never ask.
        Stage::Refused4 | Stage::Refused6 => Verdict::Drop(Drop::Internal),
    }
}

const STAGES4: firewall::Stages = firewall::Stages { new: Stage::New4, flow: Stage::Flow4, refuse: Stage::Refuse4 };
const STAGES6: firewall::Stages = firewall::Stages { new: Stage::New6, flow: Stage::Flow6, refuse: Stage::Refuse6 };

#[inline(always)]
fn flow4<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Verdict {
    let mut packet = match parsed4(frame, tables, at.iface.side) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    if packet.to_group() {
        return Verdict::Pass(Pass::Multicast);
    }
    if packet.is_martian() {
        return Verdict::Drop(Drop::Martian);
    }
    if packet.transport == Transport::Error {
        return Verdict::Next(Stage::Related4);
    }
    if packet.fragment == Fragment::Later && !fragment::adopt4(tables, &mut packet, at.now, at.control.fragment_ticks) {
        return flow::without_flow(tables, at, &*packet, Drop::FragmentUndecided);
    }
    through_flow(frame, tables, at, &*packet)
}

#[inline(always)]
fn flow6<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Verdict {
    let mut packet = match parsed6(frame, tables, at.iface.side) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    if packet.to_group() {
        return Verdict::Pass(Pass::Multicast);
    }
    if packet.is_link_local() {
        return Verdict::Pass(Pass::LinkLocal);
    }
    if packet.is_martian() {
        return Verdict::Drop(Drop::Martian);
    }
    if packet.transport == Transport::Error {
        return Verdict::Next(Stage::Related6);
    }
    if packet.fragment == Fragment::Later && !fragment::adopt6(tables, &mut packet, at.now, at.control.fragment_ticks) {
        return flow::without_flow(tables, at, &*packet, Drop::FragmentUndecided);
    }
    through_flow(frame, tables, at, &*packet)
}

/// By the flow that the packet has; without one, on to the stage that makes it.
#[inline(always)]
fn through_flow<P: Packet, F: Frame, T: Tables + FlowTable<P::Key>>(
    frame: &mut F,
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
) -> Verdict {
    if let Some(entry) = FlowTable::<P::Key>::flow(tables, packet.key())
        && let Some(verdict) = flow::known(frame, tables, at, packet, entry)
    {
        return verdict;
    }
    if packet.fragment() == Fragment::Later {
        return Verdict::Drop(Drop::FragmentUndecided);
    }
    Verdict::Next(if at.control.firewall & switch::ASKS == 0 { P::NEW } else { P::FIREWALL })
}

/// Makes the packet's flow, and forwards it.
#[inline(always)]
fn new_flow<P: Packet, F: Frame, T: Tables + FlowTable<P::Key>>(
    frame: &mut F,
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
) -> Verdict {
    if let Some(verdict) = flow::admit(tables, at, packet) {
        return verdict;
    }
    handshake::begin(tables, packet.key(), packet.signal());
    if packet.fragment() == Fragment::First {
        // That stage notes the train; two notes in one program are more stack than BPF has.
        return Verdict::Next(P::FLOW);
    }
    match FlowTable::<P::Key>::flow(tables, packet.key()) {
        Some(entry) => rewrite::forward(frame, tables, at, packet, entry),
        None => Verdict::Drop(Drop::NoFlow),
    }
}

/// The IPv4 packet, taken apart in memory that is not the stack's.
#[inline(always)]
fn parsed4<F: Frame, T: Tables>(frame: &mut F, tables: &T, side: u8) -> Result<T::Packet4, Drop> {
    let mut packet = tables.packet4().ok_or(Drop::Internal)?;
    *packet = ipv4::parse(frame, side).ok_or(Drop::Malformed)?;
    // Or what was just written would stay in registers.
    Ok(core::hint::black_box(packet))
}

/// The IPv6 packet, taken apart in memory that is not the stack's.
#[inline(always)]
fn parsed6<F: Frame, T: Tables>(frame: &mut F, tables: &T, side: u8) -> Result<T::Packet6, Drop> {
    let mut packet = tables.packet6().ok_or(Drop::Internal)?;
    match ipv6::parse(frame, side, &mut packet) {
        Ok(()) => Ok(packet),
        Err(Unreadable::Malformed) => Err(Drop::Malformed),
        Err(Unreadable::Extensions) => Err(Drop::ExtensionHeaders),
    }
}

/// The IPv4 packet, and if it is a later fragment, with the key of its flow.
#[inline(always)]
fn adopted4<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Result<T::Packet4, Drop> {
    let mut packet = parsed4(frame, tables, at.iface.side)?;
    if packet.fragment == Fragment::Later && !fragment::adopt4(tables, &mut packet, at.now, at.control.fragment_ticks) {
        return Err(Drop::FragmentUndecided);
    }
    Ok(packet)
}

/// The IPv6 packet, and if it is a later fragment, with the key of its flow.
#[inline(always)]
fn adopted6<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>) -> Result<T::Packet6, Drop> {
    let mut packet = parsed6(frame, tables, at.iface.side)?;
    if packet.fragment == Fragment::Later && !fragment::adopt6(tables, &mut packet, at.now, at.control.fragment_ticks) {
        return Err(Drop::FragmentUndecided);
    }
    Ok(packet)
}
