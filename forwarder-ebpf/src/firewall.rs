//! The firewall: may this packet begin a flow, may this flow go on, may the host get this.
//!
//! Only a flow's first packet asks, and every flow's next packet after the policy or the routes changed. Rules see addresses
//! and ports as the client does who begins the flow: before source NAT and after destination NAT. Where there are none, the
//! default of the side that a flow enters by decides, at once. Where there are:
//!
//! ```text
//!  Flow  ---+                                 +--> Flow or New, or the host
//!  no flow, +--> Firewall -------> Match -----+
//!  or old        the question      the rule   +--> Refuse: dropped, or answered
//! ```
//!
//! What the firewall refuses ends in `refuse`, whoever asked.

mod classify;
mod question;

use crate::abi::firewall::{
    COUNTER_INSIDE, COUNTER_OUTSIDE, OUT_HOST, OUT_UNSERVED, RuleAction, RuleEvent, rule, switch,
};
use crate::abi::{Control, Family, FlowEntry, FlowKey, IfaceConfig, NextHop, Side, status};
use crate::answer::{Problem, ask};
use crate::conntrack::is_turned;
use crate::flow::{Packet, remove};
use crate::frame::Frame;
use crate::nat::is_translated;
use crate::reset::reset;
use crate::route::{Arrival, Path};
use crate::tables::{Asked, Fate, FlowTable, Judged, Tables};
use crate::verdict::{Drop, Pass, Stage, Verdict};
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};
use crate::wire::{Fragment, protocol};
pub(crate) use question::{Ends, Filtered};
use question::{NO_RULE, Question, is_from_outside, rule_for};

/// What becomes of a new flow that no rule matches, by the side that it enters by: a `RuleAction`. `from_inside` decides on
/// an interface that serves both sides.
#[inline(always)]
pub(crate) fn default_action(control: &Control, side: u8, from_inside: bool) -> u8 {
    let inside = side == Side::Inside as u8 || (side == Side::Both as u8 && from_inside);
    if inside { control.inside_allowed } else { control.outside_allowed }
}

/// Without rules, whether a flow that entered by this side may go on. On an interface for both sides that is not for the side
/// to say, see `has_to_look`.
#[inline(always)]
pub(crate) fn goes_on_by_default(at: &Arrival<'_>, entered: u8) -> bool {
    entered == Side::Both as u8 || default_action(at.control, entered, false) == RuleAction::Allow as u8
}

/// Without rules, whether the stage `Firewall` has to look at a flow that goes on: on an interface for both sides it depends on
/// addresses by which it entered. Where an IPv6 one has lost its own, that cannot be told, and what goes on goes on.
#[inline(always)]
pub(crate) fn has_to_look(at: &Arrival<'_>, entered: u8, family: Family) -> bool {
    const ALLOW: u8 = RuleAction::Allow as u8;
    entered == Side::Both as u8
        && (at.control.inside_allowed != ALLOW || at.control.outside_allowed != ALLOW)
        && (family as u32 == Family::V4 as u32 || at.iface.address6 != [0; 16])
}

/// As `by_default`, of a packet that wants to begin a flow; counts it.
#[inline(always)]
pub(crate) fn begin_by_default<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P) -> Option<Verdict> {
    let side = at.iface.side;
    let from_inside = side == Side::Inside as u8 || packet.key().is_from_inside(tables, at);
    tables.count_rule(if from_inside { COUNTER_INSIDE } else { COUNTER_OUTSIDE }, packet.total(), at.now);
    let action = default_action(at.control, side, from_inside);
    (action != RuleAction::Allow as u8).then(|| refuse(tables, packet, action, Drop::Policy))
}

/// Ends a packet that no rule but the default has been asked about, unless it may go on.
#[inline(always)]
pub(crate) fn by_default<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P) -> Option<Verdict> {
    let from_inside = packet.key().is_from_inside(tables, at);
    let action = default_action(at.control, at.iface.side, from_inside);
    if action == RuleAction::Allow as u8 {
        return None;
    }
    Some(refuse(tables, packet, action, Drop::Policy))
}

/// TCP flags that no connection needs (RFC 9293 §3.5): none, SYN with FIN or RST, FIN with RST, FIN without ACK. Scanners
/// send them to see what answers.
#[inline(always)]
pub(crate) fn has_impossible_flags<P: Packet>(packet: &P) -> bool {
    let signal = packet.signal();
    packet.key().protocol() == protocol::TCP
        && packet.fragment() != Fragment::Later
        && (signal == 0
            || signal & (SYN | FIN) == SYN | FIN
            || signal & (SYN | RST) == SYN | RST
            || signal & (FIN | RST) == FIN | RST
            || signal & (FIN | ACK) == FIN)
}

/// The end of every packet that the firewall does not let through: silently, or its sender is told.
#[inline(always)]
pub(crate) fn refuse<P: Packet, T: Tables>(tables: &T, packet: &P, action: u8, reason: Drop) -> Verdict {
    if action != RuleAction::Reject as u8 {
        return Verdict::Drop(reason);
    }
    if packet.key().protocol() == protocol::TCP && packet.fragment() == Fragment::Whole {
        return reset(tables, packet, Drop::Rejected);
    }
    ask(tables, packet, Problem::Prohibited, Drop::Rejected)
}

/// The stage `Firewall`: what is to be asked about a packet that begins a flow, or about the flow that it belongs to.
#[inline(always)]
pub(crate) fn judge<P: Packet, F: Frame, T: Tables + FlowTable<P::Key>>(
    frame: &mut F,
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
) -> Verdict {
    let Some(question) = Question::about(frame, packet) else { return Verdict::Drop(Drop::Malformed) };
    if let Some(entry) = FlowTable::<P::Key>::flow(tables, packet.key()) {
        let has_passed = tables.judged().stands & Judged::GOES_ON != 0 || entry.epoch.load() == at.control.epoch as u16;
        if has_passed && is_turned(packet.key().protocol(), entry, packet.signal()) {
            return judge_turn(tables, at, packet, entry, question);
        }
        return judge_flow(tables, at, packet, entry, question);
    }
    if packet.fragment() == Fragment::Later {
        return Verdict::Drop(Drop::FragmentUndecided);
    }
    // Before the way out: who waits for a neighbour waits for the one that the FIB was asked about last.
    let comes_from_there = is_reachable(tables, at, packet);
    let path = Path::of(tables, at, packet, None);
    let left = path.left_to_host();
    if !comes_from_there && left != Some(Pass::Host) {
        return Verdict::Drop(Drop::ReversePath);
    }
    if let Some(why) = left {
        return judge_alone(tables, at, packet, question, why);
    }
    tables.set_judged(Judged { route: path.route(), ..Judged::NOT });
    let (out, side) = path.egress(tables);
    let translated = at.control.firewall & switch::TRANSLATED != 0 && packet.is_to_be_translated(tables, at, side);
    let question = question.entering(tables, at, packet.key(), at.iface.slot).leaving(out, translated);
    question.put(tables, packet, packet.key(), Asked::BEGINS)
}

/// A packet that is not forwarded here: the host's own, or one that leaves by an interface that is not served.
#[inline(always)]
fn judge_alone<P: Packet, T: Tables + FlowTable<P::Key>>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    question: Question,
    why: Pass,
) -> Verdict {
    let (out, purpose) = match why {
        Pass::Host if at.control.firewall & switch::HOST_RULES == 0 => return Verdict::Pass(Pass::Host),
        Pass::Host => (OUT_HOST, Asked::FOR_HOST),
        _ => (OUT_UNSERVED, Asked::UNSERVED),
    };
    tables.set_judged(Judged::NOT);
    let question = question.entering(tables, at, packet.key(), at.iface.slot).leaving(out, false);
    question.put(tables, packet, packet.key(), purpose)
}

/// A flow whose epoch is over. Where it has no way at present, it is judged by the one that it had; what the kernel is to
/// route now, or to have, is judged as if it had none.
#[inline(always)]
fn judge_flow<P: Packet, T: Tables + FlowTable<P::Key>>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    entry: &FlowEntry,
    question: Question,
) -> Verdict {
    let path = Path::of(tables, at, packet, Some(entry));
    let translated = is_translated(entry);
    if let Some(why) = path.left_to_host()
        && !translated
    {
        return judge_alone(tables, at, packet, question, why);
    }
    tables.set_judged(Judged { route: path.route(), stands: Judged::GOES_ON, ..Judged::NOT });
    let hop = NextHop::unpack(entry.next_hop.load());
    let out = if path.leads_on() { path.route().ifindex } else { u32::from(hop.ifindex) };
    // Where it never had one, its own stage says what becomes of the packet.
    let Some(IfaceConfig { slot, side: 1.., .. }) = tables.iface(out) else { return Verdict::Next(P::FLOW) };
    let bits = entry.status.load();
    let key = packet.key().as_originated(entry);
    let (enters, leaves) = if bits & status::ORIGINATOR != 0 { (at.iface.slot, *slot) } else { (*slot, at.iface.slot) };
    let question = question.as_begun(&key, bits).entering(tables, at, &key, enters).leaving(leaves, translated);
    question.put(tables, packet, &key, Asked::GOES_ON)
}

/// A closing flow that its responder turns round: it is a new one that enters by the responder's side.
#[inline(always)]
fn judge_turn<P: Packet, T: Tables + FlowTable<P::Key>>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    entry: &FlowEntry,
    question: Question,
) -> Verdict {
    let (slot, _) = Path::of(tables, at, packet, Some(entry)).egress(tables);
    let key = packet.key().as_translated(entry);
    let question = question.as_begun(&key, 0).entering(tables, at, &key, at.iface.slot);
    let question = question.leaving(slot, is_translated(entry));
    question.put(tables, packet, &key, Asked::TURNS)
}

/// Whether the kernel would send to the packet's source by where the packet came (strict) or at all (loose), where that is
/// asked for.
#[inline(always)]
fn is_reachable<P: Packet, T: Tables>(tables: &T, at: &Arrival<'_>, packet: &P) -> bool {
    let own = 1 << (at.iface.slot & 31);
    let strict = at.control.reverse_path_strict & own != 0;
    if !strict && at.control.reverse_path_loose & own == 0 {
        return true;
    }
    let back = packet.way_back(tables, at.ingress);
    matches!(back.fate, Fate::Forward | Fate::NoNeighbour) && (!strict || back.ifindex == at.ingress)
}

/// What comes next, by family.
pub(crate) struct Stages {
    /// Of a packet that begins a flow.
    pub new: Stage,
    /// Of a packet whose flow goes on.
    pub flow: Stage,
    /// Of what is refused.
    pub refuse: Stage,
}

/// The stage `Match`: finds the rule for the question that was put, and what follows from it.
#[inline(always)]
pub(crate) fn find<T: Tables>(tables: &T, at: &Arrival<'_>, stages: &Stages, is_ipv4: bool) -> Verdict {
    let Some(asked) = tables.asked() else { return Verdict::Drop(Drop::Internal) };
    let (purpose, way) = (asked.purpose, asked.way);
    let mut action = if purpose == Asked::FOR_HOST {
        RuleAction::Allow as u8
    } else if is_from_outside(way) {
        at.control.outside_allowed
    } else {
        at.control.inside_allowed
    };
    let mut counter = if is_from_outside(way) { COUNTER_OUTSIDE } else { COUNTER_INSIDE };
    let mut reason = if purpose == Asked::FOR_HOST { Drop::HostPolicy } else { Drop::Policy };
    let has_rules = at.control.firewall & (switch::RULES | switch::HOST_RULES) != 0;
    let word = if has_rules { rule_for(tables, &asked, is_ipv4) } else { NO_RULE };
    if word != NO_RULE {
        action = (word & rule::ACTION_MASK) as u8;
        counter = (word >> rule::COUNTER_SHIFT) as u16;
        if word & rule::BOGON != 0 {
            reason = Drop::Bogon;
        }
    }
    note(tables, at, &asked, (word, counter, action), is_ipv4);
    let judged = tables.judged();
    if action != RuleAction::Allow as u8 {
        tables.set_judged(Judged { stands: 0, action, reason, rule: counter, ..judged });
        return Verdict::Next(stages.refuse);
    }
    let (stands, next) = match purpose {
        Asked::FOR_HOST => return Verdict::Pass(Pass::Host),
        Asked::UNSERVED => return Verdict::Pass(Pass::Unserved),
        Asked::GOES_ON => (judged.stands, stages.flow),
        Asked::TURNS => (judged.stands | Judged::TURNS, stages.flow),
        _ => (Judged::BEGINS, stages.new),
    };
    tables.set_judged(Judged { stands, rule: counter, ..judged });
    Verdict::Next(next)
}

/// Counts what was decided, and has it logged where the rule says so.
#[inline(always)]
fn note<T: Tables>(
    tables: &T,
    at: &Arrival<'_>,
    asked: &Asked,
    (word, counter, action): (u64, u16, u8),
    is_ipv4: bool,
) {
    let purpose = asked.purpose;
    let is_allowed = action == RuleAction::Allow as u8;
    // A packet that waits for a neighbour is sent again by the controller: then it begins its flow.
    if is_allowed && purpose == Asked::BEGINS && tables.judged().route.fate == Fate::NoNeighbour {
        return;
    }
    let begins = purpose != Asked::GOES_ON;
    // A flow has been counted when it began, and the host's default is no rule.
    if begins && (word != NO_RULE || purpose != Asked::FOR_HOST) {
        tables.count_rule(counter, asked.bytes, at.now);
    }
    if word != NO_RULE && word & rule::LOG != 0 && (begins || !is_allowed) {
        let Asked { source, destination, service, origin, way, bytes, .. } = *asked;
        let family = if is_ipv4 { 4 } else { 6 };
        let event = RuleEvent { source, destination, service, origin, way, bytes, counter, action, family };
        tables.log_rule(&event, at.now, at.control);
    }
}

/// The stage `Refuse`: ends the packet, and its flow if it has one.
#[inline(always)]
pub(crate) fn end<P: Packet, T: Tables + FlowTable<P::Key>>(tables: &T, packet: &P) -> Verdict {
    // A packet that was to begin something ends nothing.
    if tables.asked().is_some_and(|asked| asked.purpose == Asked::GOES_ON)
        && let Some(entry) = FlowTable::<P::Key>::flow(tables, packet.key())
    {
        remove(tables, packet.key(), entry);
    }
    let judged = tables.judged();
    refuse(tables, packet, judged.action, judged.reason)
}

/// The word of the first rule that matches; for tests and for explaining.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn word_for<T: Tables>(tables: &T, asked: &Asked, is_ipv4: bool) -> Option<u64> {
    Some(rule_for(tables, asked, is_ipv4)).filter(|word| *word != NO_RULE)
}
