//! The way out of a packet: the kernel's FIB, and what its refusals mean. Owns no routes.

use crate::abi::firewall::OUT_UNSERVED;
use crate::abi::{Control, FlowEntry, IfaceConfig, NextHop, Ticks, status};
use crate::answer::{Problem, ask};
use crate::flow::Packet;
use crate::tables::{Fate, Route, Tables};
use crate::verdict::{Drop, Pass, Verdict};

/// What is known of a frame before its headers are read.
pub(crate) struct Arrival<'t> {
    /// Ingress interface index.
    pub ingress: u32,
    /// Time of arrival.
    pub now: Ticks,
    /// Configuration of the ingress interface.
    pub iface: &'t IfaceConfig,
    /// Switches.
    pub control: &'t Control,
    /// Counter of the firewall rule that let the packet begin a flow.
    pub rule: u16,
}

impl Arrival<'_> {
    /// `Side` of the interface that the first packet of this packet's flow came by.
    #[inline(always)]
    pub(crate) fn side_entered(&self, entry: &FlowEntry) -> u8 {
        if entry.status.load() & status::ORIGINATOR != 0 { self.iface.side } else { entry.partner_side() }
    }
}

/// A usable way out.
pub(crate) struct Way {
    /// Next hop.
    pub hop: NextHop,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Side of the egress interface.
    pub side: u8,
}

/// What the FIB says, and whether forwarder serves the interface that it names.
pub(crate) struct Path {
    route: Route,
    /// Side of the egress interface; 0 when it is not served, or when there is none.
    side: u8,
}

impl Path {
    /// Asks the FIB. `entry` is the flow that the packet belongs to, if there is one: it says where the packet goes after
    /// translation.
    #[inline(always)]
    pub(crate) fn of<P: Packet, T: Tables>(
        tables: &T,
        at: &Arrival<'_>,
        packet: &P,
        entry: Option<&FlowEntry>,
    ) -> Self {
        Self::found(tables, packet.route(tables, at.ingress, entry))
    }

    /// What the FIB has said before.
    #[inline(always)]
    pub(crate) fn found<T: Tables>(tables: &T, route: Route) -> Self {
        // The kernel leaves the index of the ingress interface where a route leads nowhere.
        let side = match tables.iface(route.ifindex) {
            Some(egress) if matches!(route.fate, Fate::Forward | Fate::NoNeighbour) => egress.side,
            _ => 0,
        };
        Self { route, side }
    }

    /// What the FIB says.
    #[inline(always)]
    pub(crate) fn route(&self) -> Route {
        self.route
    }

    /// Slot and side of the egress interface; `OUT_UNSERVED` and 0 when it is not served, or when there is none.
    #[inline(always)]
    pub(crate) fn egress<T: Tables>(&self, tables: &T) -> (u8, u8) {
        match tables.iface(self.route.ifindex) {
            Some(egress) if self.side != 0 => (egress.slot, self.side),
            _ => (OUT_UNSERVED, 0),
        }
    }

    /// It leads to an interface that is served.
    #[inline(always)]
    pub(crate) fn leads_on(&self) -> bool {
        self.side != 0
    }

    /// Why it is the host's packet, if it is.
    #[inline(always)]
    pub(crate) fn left_to_host(&self) -> Option<Pass> {
        match self.route.fate {
            Fate::NotForwarded => Some(Pass::Host),
            Fate::Forward | Fate::NoNeighbour if self.side == 0 => Some(Pass::Unserved),
            _ => None,
        }
    }

    /// Takes it, or ends the packet as the route says.
    #[inline(always)]
    pub(crate) fn take<P: Packet, T: Tables>(self, tables: &T, at: &Arrival<'_>, packet: &P) -> Result<Way, Verdict> {
        let Route { fate, ifindex, mac, mtu } = self.route;
        match fate {
            Fate::Forward => Ok(Way { hop: NextHop { ifindex: ifindex as u16, mac }, mtu, side: self.side }),
            Fate::NoNeighbour if tables.hold(at.ingress) => Err(Verdict::Pass(Pass::Held)),
            Fate::NoNeighbour => Err(Verdict::Drop(Drop::NeighbourUnknown)),
            Fate::NotForwarded | Fate::Blackhole => Err(Verdict::Drop(Drop::RouteBlackhole)),
            Fate::Unreachable => Err(ask(tables, packet, Problem::HostUnreachable, Drop::RouteUnreachable)),
            Fate::Prohibited => Err(ask(tables, packet, Problem::Prohibited, Drop::RouteProhibited)),
            Fate::Disabled => Err(Verdict::Drop(Drop::ForwardingDisabled)),
        }
    }
}

/// The way of a packet that no rule has to be asked about. The host gets what is its own, but never the packets of a
/// translated flow.
#[inline(always)]
pub(crate) fn way_out<P: Packet, T: Tables>(
    tables: &T,
    at: &Arrival<'_>,
    packet: &P,
    entry: Option<&FlowEntry>,
) -> Result<Way, Verdict> {
    let path = Path::of(tables, at, packet, entry);
    match (path.left_to_host(), entry) {
        (None, _) => path.take(tables, at, packet),
        (Some(_), Some(entry)) if crate::nat::is_translated(entry) => {
            Err(ask(tables, packet, Problem::NoRoute, Drop::RouteUnreachable))
        }
        (Some(why), _) => Err(Verdict::Pass(why)),
    }
}
