//! What is known of a flow's window, and of an interface: the content of records before they are text, columns or IPFIX.
//!
//! ```text
//! Window (one direction of a flow, one window)  --->  a record of the interface it came by (ingress)
//!                                                \->  a record of the interface it left by (egress)
//! refused packets have the first only
//! ```

use forwarder_ebpf::verdict::Drop;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
}

impl Default for Tuple {
    fn default() -> Self {
        let none = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self { source: none, destination: none, source_port: 0, destination_port: 0 }
    }
}

/// One direction of a flow in one window, or refused packets of one 5-tuple.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// As its packets come.
    pub arrived: Tuple,
    /// As they leave; equal when nothing is translated.
    pub left: Tuple,
    /// Where they come in: index in [`Interfaces`].
    pub ingress: u16,
    /// Where they leave; [`NOWHERE`] when they do not.
    pub egress: u16,
    /// IP protocol.
    pub protocol: u8,
    /// As AWS counts them, ORed over the window.
    pub tcp_flags: u8,
    /// This direction is the originator's.
    pub originator: bool,
    /// The first window of this direction.
    pub begins: bool,
    /// The flow has ended with this window.
    pub ends: bool,
    /// Why the packets were refused; none: they were forwarded.
    pub refused: Option<Drop>,
    /// Number of the rule that decided, 0 for a default.
    pub rule: u16,
    /// Packets in the window.
    pub packets: u64,
    /// Bytes of IP packet in the window.
    pub bytes: u64,
    /// First packet in the window, milliseconds since 1970.
    pub first_ms: i64,
    /// Last packet in the window, milliseconds since 1970.
    pub last_ms: i64,
    /// Beginning of the connection, milliseconds since 1970; 0: not known.
    pub begun_ms: i64,
    /// Round trip towards the source, microseconds; 0: not known.
    pub rtt_source_us: u32,
    /// Round trip towards the destination, microseconds; 0: not known.
    pub rtt_destination_us: u32,
}

/// `egress` of packets that go nowhere.
pub const NOWHERE: u16 = u16::MAX;

/// Which side of an interface a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that came in.
    Ingress,
    /// Packets that left.
    Egress,
}

/// A line of a log.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// Packets.
    Flow(&'a Window, Direction),
    /// The interface had none in this window.
    NoData(Span),
    /// Records of the interface were lost in this time.
    SkipData(Span),
}

/// A time, seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub start: i64,
    /// Its end.
    pub end: i64,
}

impl Window {
    /// The records that it makes: interface and direction.
    pub fn records(&self) -> impl Iterator<Item = (u16, Direction)> {
        let egress = (self.egress != NOWHERE).then_some((self.egress, Direction::Egress));
        std::iter::once((self.ingress, Direction::Ingress)).chain(egress)
    }

    /// Whether something was translated.
    pub fn is_translated(&self) -> bool {
        self.arrived != self.left
    }
}

/// Which side of the forwarder an interface is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Clients are here.
    Inside,
    /// The world is here.
    Outside,
    /// One interface serves both; or not known.
    #[default]
    Both,
}

/// One interface, as records name it. Texts that are not known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name on the host.
    pub name: String,
    /// Its index on the host; 0: it is gone or was never known.
    pub ifindex: u32,
    /// Its place in the device map.
    pub slot: u8,
    /// Its side.
    pub place: Place,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Primary IPv4 address.
    pub address4: Option<IpAddr>,
    /// Primary IPv6 address.
    pub address6: Option<IpAddr>,
    /// Owner.
    pub account_id: String,
    /// Its id; the name where there is no id.
    pub interface_id: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Its subnet.
    pub subnet_id: String,
    /// The instance.
    pub instance_id: String,
    /// The region.
    pub region: String,
    /// The availability zone.
    pub az_id: String,
}

/// The interfaces and rules that windows refer to by number, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    /// By the number in windows. The first stands for all that are not known.
    pub list: Vec<Interface>,
    /// Names of firewall rules by their numbers; empty: no rule's, or a default's.
    pub rules: Arc<Vec<String>>,
}

impl Interfaces {
    /// The interface with a number.
    pub fn at(&self, number: u16) -> Option<&Interface> {
        self.list.get(usize::from(number)).or(self.list.first())
    }

    /// The number of the interface with this index on the host; 0 when it is not known.
    pub fn number_of(&self, ifindex: u32) -> u16 {
        let found = self.list.iter().skip(1).position(|interface| interface.ifindex == ifindex);
        found.map_or(0, |at| at as u16 + 1)
    }

    /// The number of the interface in this slot; 0 when it is not known.
    pub fn number_of_slot(&self, slot: u8) -> u16 {
        let found = self.list.iter().skip(1).position(|interface| interface.slot == slot);
        found.map_or(0, |at| at as u16 + 1)
    }

    /// The name of a rule.
    pub fn rule(&self, number: u16) -> Option<&str> {
        self.rules.get(usize::from(number)).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// Windows that belong together, with what they refer to.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the numbers mean.
    pub interfaces: Arc<Interfaces>,
    /// The windows.
    pub windows: Vec<Window>,
}
