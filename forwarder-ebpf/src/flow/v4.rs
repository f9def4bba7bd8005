//! What an IPv4 packet is to flow logic, and the making of its flow, translated or not.

use super::{Packet, birth, end_refused, fresh_entry, insert_second, set_way, with_partner};
use crate::abi::{FlowEntry, FlowKey, FlowKey4, Ticks, status};
use crate::answer::Problem;
use crate::conntrack;
use crate::fragment;
use crate::frame::Frame;
use crate::nat::{self, Source};
use crate::route::{Arrival, Way};
use crate::sequence;
use crate::tables::{Answer, FlowTable, Judged, Refused, Route, RouteQuery, Tables};
use crate::verdict::{Drop, Stage, Verdict};
use crate::wire::ipv4::Packet4;
use crate::wire::{Fragment, Transport, protocol};

impl Packet for Packet4 {
    type Key = FlowKey4;
    const FLOW: Stage = Stage::Flow4;
    const NEW: Stage = Stage::New4;
    const ANSWER: Stage = Stage::Answer4;

    #[inline(always)]
    fn key(&self) -> &FlowKey4 {
        &self.key
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn total(&self) -> u32 {
        u32::from(self.total)
    }

    #[inline(always)]
    fn signal(&self) -> u8 {
        self.signal
    }

    #[inline(always)]
    fn sequence(&self) -> u32 {
        self.sequence
    }

    #[inline(always)]
    fn fragment(&self) -> Fragment {
        self.fragment
    }

    #[inline(always)]
    fn may_be_fragmented(&self) -> bool {
        !self.dont_fragment
    }

    #[inline(always)]
    fn may_be_answered(&self) -> bool {
        self.fragment != Fragment::Later && self.transport != Transport::Error
    }

    #[inline(always)]
    fn answer(&self, problem: Problem, reason: Drop) -> Answer {
        problem.icmp4(reason)
    }

    #[inline(always)]
    fn route<T: Tables>(&self, tables: &T, ingress: u32, entry: Option<&FlowEntry>) -> Route {
        let destination = match entry {
            Some(entry) => entry.destination(),
            None => self.key.destination,
        };
        let (source, protocol) = (&self.key.source, self.key.protocol);
        tables.route4(&RouteQuery { ingress, source, destination: &destination, protocol, tos: self.tos })
    }

    #[inline(always)]
    fn write<F: Frame>(&self, frame: &mut F, entry: &FlowEntry) -> bool {
        Packet4::write(self, frame, entry)
    }

    #[inline(always)]
    fn remember<T: Tables>(&self, tables: &T, now: Ticks) {
        fragment::remember4(tables, self, now);
    }

    #[inline(always)]
    fn open<T: Tables>(&self, tables: &T, at: &Arrival<'_>, way: &Way) -> Result<(), Verdict> {
        match self.transport {
            Transport::Control => return Err(Verdict::Drop(Drop::IcmpUnsupported)),
            Transport::EchoReply => return Err(Verdict::Drop(Drop::NoFlow)),
            _ => {}
        }
        let loose = at.control.loose_tcp != 0;
        let bits = conntrack::begin(self.key.protocol, self.signal, loose).ok_or(Verdict::Drop(Drop::NoFlow))?;
        let mut answer = self.key.reversed(way.side);
        let mut taken = Verdict::Drop(Drop::NoFlow);
        let is_translated = nat::applies(at.iface.side, way.side)
            && match nat::source(tables, at.control, &self.key) {
                Source::Public(address) => {
                    answer.destination = address;
                    true
                }
                Source::Unnamed | Source::Exempt => false,
            };
        FlowTable::<FlowKey4>::expect_flow(tables, &self.key);
        FlowTable::<FlowKey4>::expect_flow(tables, &answer);
        if is_translated {
            taken = Verdict::Drop(Drop::NatExhausted);
            if self.has_ports() {
                let keeps = tables.judged().stands & Judged::PORT_TAKEN == 0;
                if !nat::find_port(tables, at.control, &mut answer, (self.key.source_port, keeps)) {
                    return Err(taken);
                }
                // Another CPU took the port in between, or it was overlooked: there are others.
                taken = Verdict::Next(Self::NEW);
            }
        }
        self.insert(tables, at, (way, bits), &answer).map_err(|refused| {
            if refused == Refused::Exists {
                let judged = tables.judged();
                tables.set_judged(Judged { stands: judged.stands | Judged::PORT_TAKEN, ..judged });
            }
            end_refused::<Self>(refused, taken)
        })
    }
}

impl Packet4 {
    #[inline(always)]
    fn has_ports(&self) -> bool {
        matches!(self.transport, Transport::Tcp | Transport::Udp | Transport::Echo)
    }

    /// Inserts both entries, the responder's (with the key `answer`) first.
    #[inline(always)]
    fn insert<T: Tables>(
        &self,
        tables: &T,
        at: &Arrival<'_>,
        (way, bits): (&Way, (u32, u32)),
        answer: &FlowKey4,
    ) -> Result<(), Refused> {
        let translated = answer.destination != self.key.source;
        let (out, back) = if translated { (status::SOURCE_NAT, status::DESTINATION_NAT) } else { (0, 0) };
        let birth = birth(at);

        let entry = fresh_entry(at, bits.1 | back, at.iface.side);
        set_way(&entry, at, None);
        entry.leave_as(&self.key.reversed(0));
        match tables.insert_flow(answer, &entry, &birth) {
            Ok(()) => {}
            // Untranslated, it can only be the same flow, made by another CPU this moment.
            Err(Refused::Exists) if FlowTable::<FlowKey4>::flow(tables, &self.key).is_some() => return Ok(()),
            Err(refused) => return Err(refused),
        }

        if self.key.protocol == protocol::TCP {
            sequence::begin(&birth, self.sequence);
        }
        entry.status.store(with_partner(bits.0 | out, way.side));
        set_way(&entry, at, Some(way));
        entry.leave_as(&answer.reversed(0));
        insert_second(tables, (&self.key, &entry), &birth, answer)
    }
}
