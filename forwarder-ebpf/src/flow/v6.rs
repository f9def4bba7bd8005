//! What an IPv6 packet is to flow logic, and the making of its flow. Nothing is translated.

use super::{Packet, birth, end_refused, fresh_entry, insert_second, set_way, with_partner};
use crate::abi::{FlowEntry, FlowKey, FlowKey6, Ticks};
use crate::answer::Problem;
use crate::conntrack;
use crate::fragment;
use crate::frame::Frame;
use crate::route::{Arrival, Way};
use crate::sequence;
use crate::tables::{Answer, FlowTable, Refused, Route, RouteQuery, Tables};
use crate::verdict::{Drop, Stage, Verdict};
use crate::wire::ipv6::Packet6;
use crate::wire::{Fragment, Transport, icmp, protocol};

impl Packet for Packet6 {
    type Key = FlowKey6;
    const FLOW: Stage = Stage::Flow6;
    const NEW: Stage = Stage::New6;
    const ANSWER: Stage = Stage::Answer6;

    #[inline(always)]
    fn key(&self) -> &FlowKey6 {
        &self.key
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn total(&self) -> u32 {
        self.total
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
        false
    }

    #[inline(always)]
    fn may_be_answered(&self) -> bool {
        self.fragment != Fragment::Later && self.transport != Transport::Error
    }

    #[inline(always)]
    fn answer(&self, problem: Problem, reason: Drop) -> Answer {
        problem.icmp6(reason)
    }

    #[inline(always)]
    fn route<T: Tables>(&self, tables: &T, ingress: u32, _: Option<&FlowEntry>) -> Route {
        tables.route6(&RouteQuery {
            ingress,
            source: &self.key.source,
            destination: &self.key.destination,
            protocol: self.key.protocol,
            tos: self.tos,
        })
    }

    #[inline(always)]
    fn write<F: Frame>(&self, frame: &mut F, _: &FlowEntry) -> bool {
        Packet6::write(self, frame)
    }

    #[inline(always)]
    fn remember<T: Tables>(&self, tables: &T, now: Ticks) {
        fragment::remember6(tables, self, now);
    }

    #[inline(always)]
    fn open<T: Tables>(&self, tables: &T, at: &Arrival<'_>, way: &Way) -> Result<(), Verdict> {
        let is_icmp = self.key.protocol == protocol::ICMPV6;
        if is_icmp && self.icmp_type != icmp::v6::ECHO {
            let reply = self.icmp_type == icmp::v6::ECHO_REPLY;
            return Err(Verdict::Drop(if reply { Drop::NoFlow } else { Drop::IcmpUnsupported }));
        }
        let loose = at.control.loose_tcp != 0;
        let bits = conntrack::begin(self.key.protocol, self.signal, loose).ok_or(Verdict::Drop(Drop::NoFlow))?;
        self.insert(tables, at, (way, bits))
            .map_err(|refused| end_refused::<Self>(refused, Verdict::Drop(Drop::NoFlow)))
    }
}

impl Packet6 {
    /// Inserts both entries, the responder's first.
    #[inline(always)]
    fn insert<T: Tables>(&self, tables: &T, at: &Arrival<'_>, (way, bits): (&Way, (u32, u32))) -> Result<(), Refused> {
        let answer = self.key.reversed(way.side);
        let birth = birth(at);
        FlowTable::<FlowKey6>::expect_flow(tables, &self.key);
        FlowTable::<FlowKey6>::expect_flow(tables, &answer);
        let entry = fresh_entry(at, bits.1, at.iface.side);
        set_way(&entry, at, None);
        match tables.insert_flow(&answer, &entry, &birth) {
            Ok(()) => {}
            Err(Refused::Exists) if FlowTable::<FlowKey6>::flow(tables, &self.key).is_some() => return Ok(()),
            Err(refused) => return Err(refused),
        }
        if self.key.protocol == protocol::TCP {
            sequence::begin(&birth, self.sequence);
        }
        entry.status.store(with_partner(bits.0, way.side));
        set_way(&entry, at, Some(way));
        insert_second(tables, (&self.key, &entry), &birth, &answer)
    }
}
