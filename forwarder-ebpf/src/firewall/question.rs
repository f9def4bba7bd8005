//! What a rule can look at, of a packet or of a flow, as the five numbers of `abi::firewall`.

use super::classify::{self, class_of, first_match, rule_word};
use crate::abi::firewall::{origin_key, service_key, tree, way_key};
use crate::abi::{FlowEntry, FlowKey, FlowKey4, FlowKey6, Side, status};
use crate::flow::Packet;
use crate::frame::Frame;
use crate::nat::{self, Source};
use crate::route::Arrival;
use crate::tables::{Asked, Lines, Route, RouteQuery, Tables};
use crate::verdict::{Stage, Verdict};
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;
use crate::wire::{Fragment, icmp, protocol, tcp_flags};

/// Addresses and ports of a flow as the rules see them.
pub(crate) trait Ends: FlowKey {
    /// The key that the flow's first packet had, but with the destination that it has after translation: `self` is the key of
    /// either direction's packets, `entry` its flow entry.
    fn as_originated(&self, entry: &FlowEntry) -> Self;
    /// The key of a packet of `entry` with the destination that it has after translation.
    fn as_translated(&self, entry: &FlowEntry) -> Self;
    /// The source belongs to the inside, on an interface that serves both sides.
    fn is_from_inside<T: Tables>(&self, tables: &T, at: &Arrival<'_>) -> bool;
    /// Source and destination port.
    fn ports(&self) -> ([u8; 2], [u8; 2]);
    /// Source and destination as numbers, upper half first.
    fn addresses(&self) -> ([u64; 2], [u64; 2]);
}

/// What the firewall needs of a packet besides.
pub(crate) trait Filtered {
    /// Stage that asks the rules about it.
    const FIREWALL: Stage;
    /// Stage that finds the rule.
    const MATCH: Stage;
    /// Stage that answers it with a TCP reset.
    const RESET: Stage;
    /// Offset of the transport header in the frame.
    fn l4(&self) -> usize;
    /// What the FIB says of the way to its source.
    fn way_back<T: Tables>(&self, tables: &T, ingress: u32) -> Route;
    /// Its flow, if it begins one that leaves by this side, gets another source.
    fn is_to_be_translated<T: Tables>(&self, tables: &T, at: &Arrival<'_>, side: u8) -> bool;
}

impl Filtered for Packet4 {
    const FIREWALL: Stage = Stage::Firewall4;
    const MATCH: Stage = Stage::Match4;
    const RESET: Stage = Stage::Reset4;

    #[inline(always)]
    fn l4(&self) -> usize {
        Self::l4(self)
    }

    #[inline(always)]
    fn way_back<T: Tables>(&self, tables: &T, ingress: u32) -> Route {
        let (source, destination) = (&self.key.destination, &self.key.source);
        tables.route4(&RouteQuery { ingress, source, destination, protocol: self.key.protocol, tos: self.tos })
    }

    #[inline(always)]
    fn is_to_be_translated<T: Tables>(&self, tables: &T, at: &Arrival<'_>, side: u8) -> bool {
        nat::applies(at.iface.side, side) && matches!(nat::source(tables, at.control, &self.key), Source::Public(_))
    }
}

impl Filtered for Packet6 {
    const FIREWALL: Stage = Stage::Firewall6;
    const MATCH: Stage = Stage::Match6;
    const RESET: Stage = Stage::Reset6;

    #[inline(always)]
    fn l4(&self) -> usize {
        // No more can come of the extension headers that are followed; the verifier knows no bound of what it reads back.
        self.l4 & 0x3fff
    }

    #[inline(always)]
    fn way_back<T: Tables>(&self, tables: &T, ingress: u32) -> Route {
        let (source, destination) = (&self.key.destination, &self.key.source);
        tables.route6(&RouteQuery { ingress, source, destination, protocol: self.key.protocol, tos: self.tos })
    }

    #[inline(always)]
    fn is_to_be_translated<T: Tables>(&self, _: &T, _: &Arrival<'_>, _: u8) -> bool {
        false
    }
}

impl Ends for FlowKey4 {
    #[inline(always)]
    fn as_originated(&self, entry: &FlowEntry) -> Self {
        if entry.status.load() & status::ORIGINATOR != 0 {
            return self.as_translated(entry);
        }
        Self {
            source: entry.destination(),
            destination: self.source,
            source_port: entry.destination_port(),
            destination_port: self.source_port,
            protocol: self.protocol,
            side: entry.partner_side(),
            zero: [0; 2],
        }
    }

    #[inline(always)]
    fn as_translated(&self, entry: &FlowEntry) -> Self {
        Self { destination: entry.destination(), destination_port: entry.destination_port(), ..*self }
    }

    #[inline(always)]
    fn is_from_inside<T: Tables>(&self, tables: &T, at: &Arrival<'_>) -> bool {
        at.iface.side == Side::Both as u8 && nat::source(tables, at.control, self) != Source::Unnamed
    }

    #[inline(always)]
    fn ports(&self) -> ([u8; 2], [u8; 2]) {
        (self.source_port, self.destination_port)
    }

    #[inline(always)]
    fn addresses(&self) -> ([u64; 2], [u64; 2]) {
        let number = |address| u64::from(u32::from_be_bytes(address));
        ([0, number(self.source)], [0, number(self.destination)])
    }
}

impl Ends for FlowKey6 {
    #[inline(always)]
    fn as_originated(&self, entry: &FlowEntry) -> Self {
        if entry.status.load() & status::ORIGINATOR != 0 { *self } else { self.reversed(entry.partner_side()) }
    }

    #[inline(always)]
    fn as_translated(&self, _: &FlowEntry) -> Self {
        *self
    }

    /// Without NAT there is no rule to ask: the inside is who shares the interface's /56, the size of a VPC.
    #[inline(always)]
    fn is_from_inside<T: Tables>(&self, _: &T, at: &Arrival<'_>) -> bool {
        let own = u128::from_be_bytes(at.iface.address6);
        own != 0 && (own ^ u128::from_be_bytes(self.source)) >> 72 == 0
    }

    #[inline(always)]
    fn ports(&self) -> ([u8; 2], [u8; 2]) {
        (self.source_port, self.destination_port)
    }

    #[inline(always)]
    fn addresses(&self) -> ([u64; 2], [u64; 2]) {
        (halves(&self.source), halves(&self.destination))
    }
}

/// An IPv6 address as two numbers.
#[inline(always)]
fn halves(address: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p])]
}

/// No rule matches.
pub(super) const NO_RULE: u64 = u64::MAX;

/// The word of the first rule that matches, or `NO_RULE`.
#[inline(always)]
pub(super) fn rule_for<T: Tables>(tables: &T, asked: &Asked, is_ipv4: bool) -> u64 {
    let Some(policy) = tables.policy() else { return NO_RULE };
    let Some(header) = policy.line(0) else { return NO_RULE };
    let [_, addresses4, addresses6, services, origins, ways, ..] = header.words;
    let (source, destination) = if is_ipv4 {
        (class_of(&policy, addresses4, asked.source[1]), class_of(&policy, addresses4, asked.destination[1]))
    } else {
        (pair_of(&policy, addresses6, asked.source), pair_of(&policy, addresses6, asked.destination))
    };
    let service = class_of(&policy, services, asked.service) as u32;
    let origin = class_of(&policy, origins, asked.origin) as u32;
    let way = class_of(&policy, ways, asked.way) as u32;
    // A pair of classes: the address as a source below, as a destination above.
    let rule = first_match(&policy, header, [source as u32, (destination >> 32) as u32, service, origin, way]);
    if rule == classify::NO_RULE { NO_RULE } else { rule_word(&policy, header, rule) }
}

/// The pair of classes of an IPv6 address: by its upper half, and by the lower one where that matters.
#[inline(always)]
fn pair_of<L: Lines>(lines: &L, addresses: u64, [upper, lower]: [u64; 2]) -> u64 {
    let found = class_of(lines, addresses, upper);
    if found & tree::IS_TREE == 0 { found } else { class_of(lines, found, lower) }
}

/// The question's flow enters outside.
#[inline(always)]
pub(super) fn is_from_outside(way: u64) -> bool {
    way & way_key(0, true, 0, false) != 0
}

/// What the rules are asked, apart from addresses.
#[derive(Clone, Copy)]
pub(super) struct Question {
    service: u64,
    origin: u64,
    way: u64,
}

impl Question {
    /// About a packet as it is. `None` when it lacks its transport header.
    #[inline(always)]
    pub(super) fn about<P: Packet, F: Frame>(frame: &mut F, packet: &P) -> Option<Self> {
        let key = packet.key();
        let (source_port, destination_port) = key.ports();
        let number = key.protocol();
        let mut detail = u16::from_be_bytes(destination_port);
        let mut source_port = u16::from_be_bytes(source_port);
        let mut flags = 0;
        if packet.fragment() != Fragment::Later {
            if number == protocol::TCP {
                flags = *frame.at::<14>(packet.l4())?.last()?;
            } else if number == protocol::ICMP || number == protocol::ICMPV6 {
                let [kind, code] = *frame.at::<2>(packet.l4())?;
                (detail, source_port) = (u16::from_be_bytes([kind, code]), 0);
            }
        }
        Some(Self { service: service_key(number, detail), origin: origin_key(flags, source_port), way: 0 })
    }

    /// About the flow's first packet instead, whose key is `key`: a SYN, or an echo request.
    #[inline(always)]
    pub(super) fn as_begun<K: Ends>(self, key: &K, bits: u32) -> Self {
        let (source_port, destination_port) = key.ports();
        let mut detail = u16::from_be_bytes(destination_port);
        let mut source_port = u16::from_be_bytes(source_port);
        let mut flags = 0;
        let number = key.protocol();
        if number == protocol::TCP {
            flags = if bits & status::LOOSE == 0 { tcp_flags::SYN } else { tcp_flags::ACK };
        } else if number == protocol::ICMP {
            (detail, source_port) = (u16::from_be_bytes([icmp::v4::ECHO, 0]), 0);
        } else if number == protocol::ICMPV6 {
            (detail, source_port) = (u16::from_be_bytes([icmp::v6::ECHO, 0]), 0);
        }
        Self { service: service_key(number, detail), origin: origin_key(flags, source_port), way: self.way }
    }

    /// It enters by this slot, and on an interface for both sides by the side that its source belongs to.
    #[inline(always)]
    pub(super) fn entering<K: Ends, T: Tables>(self, tables: &T, at: &Arrival<'_>, key: &K, slot: u8) -> Self {
        let from_outside = match key.side() {
            side if side == Side::Inside as u8 => false,
            side if side == Side::Outside as u8 => true,
            _ => !key.is_from_inside(tables, at),
        };
        Self { way: way_key(slot & 31, from_outside, 0, false), ..self }
    }

    /// It leaves by this slot, or `OUT_*`.
    #[inline(always)]
    pub(super) fn leaving(self, out: u8, translated: bool) -> Self {
        Self { way: self.way | way_key(0, false, out & 63, translated), ..self }
    }

    /// Leaves it to the stage `Match`. `key` has the addresses as the rules see them.
    #[inline(always)]
    pub(super) fn put<P: Packet, T: Tables>(self, tables: &T, packet: &P, key: &P::Key, purpose: u8) -> Verdict {
        let (source, destination) = key.addresses();
        let Self { service, origin, way } = self;
        let bytes = packet.total();
        tables.set_asked(&Asked { source, destination, service, origin, way, bytes, purpose, zero: [0; 3] });
        Verdict::Next(P::MATCH)
    }
}
