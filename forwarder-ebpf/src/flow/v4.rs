//! What an IPv4 packet is to flow logic, and the making of its flow, translated or not.

use super::{Packet, fresh_entry, insert_second, set_way};
use crate::abi::{FlowEntry, FlowKey, FlowKey4, SharedU32, Side, Ticks, status};
use crate::answer::Problem;
use crate::conntrack;
use crate::fragment;
use crate::frame::Frame;
use crate::nat::{self, Source};
use crate::route::{Arrival, Way};
use crate::tables::{Answer, FlowTable, Refused, Route, RouteQuery, Tables};
use crate::verdict::{Drop, Stage};
use crate::wire::ipv4::Packet4;
use crate::wire::{Fragment, Transport};

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
            Some(entry) => &entry.destination,
            None => &self.key.destination,
        };
        let (source, protocol) = (&self.key.source, self.key.protocol);
        tables.route4(&RouteQuery { ingress, source, destination, protocol, tos: self.tos })
    }

    #[inline(always)]
    fn is_from_inside<T: Tables>(&self, tables: &T, at: &Arrival<'_>) -> bool {
        at.iface.side == Side::Both as u8 && nat::source(tables, at.control, &self.key) != Source::Unnamed
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
    fn open<T: Tables>(&self, tables: &T, at: &Arrival<'_>, way: &Way) -> Result<(), Drop> {
        match self.transport {
            Transport::Control => return Err(Drop::IcmpUnsupported),
            Transport::EchoReply => return Err(Drop::NoFlow),
            _ => {}
        }
        let bits = conntrack::begin(self.key.protocol, self.signal, at.control.loose_tcp != 0).ok_or(Drop::NoFlow)?;
        let public = if nat::applies(at.iface.side, way.side) {
            nat::source(tables, at.control, &self.key)
        } else {
            Source::Unnamed
        };
        let mut answer = self.key.reversed(way.side);
        match public {
            Source::Public(address) => {
                answer.destination = address;
                self.insert_translated(tables, at, (way, bits), &mut answer)
            }
            _ => self.insert(tables, at, (way, bits), &answer),
        }
    }
}

impl Packet4 {
    #[inline(always)]
    fn has_ports(&self) -> bool {
        matches!(self.transport, Transport::Tcp | Transport::Udp | Transport::Echo)
    }

    /// Finds a port and inserts; a few more times when another CPU takes the port in between.
    #[inline(always)]
    fn insert_translated<T: Tables>(
        &self,
        tables: &T,
        at: &Arrival<'_>,
        (way, bits): (&Way, (u32, u32)),
        answer: &mut FlowKey4,
    ) -> Result<(), Drop> {
        let mut round = 0;
        while round < 3 {
            if self.has_ports() && !nat::find_port(tables, at.control, answer, self.key.source_port) {
                return Err(Drop::NatExhausted);
            }
            match self.insert(tables, at, (way, bits), answer) {
                Err(Drop::NoFlow) => {}
                end => return end,
            }
            round += 1;
        }
        Err(Drop::NatExhausted)
    }

    /// Inserts both entries, the responder's (with the key `answer`) first. `NoFlow`: that key is taken.
    #[inline(always)]
    fn insert<T: Tables>(
        &self,
        tables: &T,
        at: &Arrival<'_>,
        (way, bits): (&Way, (u32, u32)),
        answer: &FlowKey4,
    ) -> Result<(), Drop> {
        let change = nat::rewrite(&self.key, self.transport, answer.destination, answer.destination_port);
        let translated = answer.destination != self.key.source;
        let (out, back) = if translated { (status::SOURCE_NAT, status::DESTINATION_NAT) } else { (0, 0) };

        let mut entry = fresh_entry(at, bits.1 | back, at.iface.side);
        set_way(&mut entry, at, None);
        entry.source = self.key.destination;
        entry.source_port = self.key.destination_port;
        entry.destination = self.key.source;
        entry.destination_port = self.key.source_port;
        (entry.ip_delta, entry.l4_delta) = change.back;
        match tables.insert_flow(answer, &entry) {
            Ok(()) => {}
            Err(Refused::Full) => return Err(Drop::TableFull),
            // Untranslated, it can only be the same flow, made by another CPU this moment.
            Err(Refused::Exists) if FlowTable::<FlowKey4>::flow(tables, &self.key).is_some() => return Ok(()),
            Err(Refused::Exists) => return Err(Drop::NoFlow),
        }

        entry.partner_side = way.side;
        entry.status = SharedU32::new(bits.0 | out);
        set_way(&mut entry, at, Some(way));
        entry.source = answer.destination;
        entry.source_port = answer.destination_port;
        entry.destination = self.key.destination;
        entry.destination_port = self.key.destination_port;
        (entry.ip_delta, entry.l4_delta) = change.out;
        insert_second(tables, &self.key, &entry, answer)
    }
}
