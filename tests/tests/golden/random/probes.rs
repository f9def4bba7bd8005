//! First packets that rules can tell apart, on every path through the world.

use forwarder_golden::body::Action;
use forwarder_golden::world::{ARM, IN, OUT, PORTS, arriving};
use forwarder_kit::packet::flag::{ACK, PSH, SYN, URG};
use forwarder_kit::packet::{Summary, protocol};
use std::net::IpAddr;

/// Where a packet enters or leaves: by which interface, on which side of the appliance.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    name: &'static str,
    pub side: &'static str,
}

const INSIDE: Place = Place { name: "in0", side: "inside" };
const OUTSIDE: Place = Place { name: "out0", side: "outside" };
const ARM_INSIDE: Place = Place { name: "arm0", side: "inside" };
const ARM_OUTSIDE: Place = Place { name: "arm0", side: "outside" };
const UNSERVED: Place = Place { name: "other0", side: "" };
const HOST: Place = Place { name: "", side: "" };

impl Place {
    /// Whether a rule that names `place` means this one. No rule names an interface that is not served.
    pub fn is(self, place: &str) -> bool {
        place == self.name || place == self.side
    }

    /// Whether it goes no further than the appliance.
    pub fn is_host(self) -> bool {
        self.name.is_empty()
    }
}

/// A way through the world: where, from and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub ingress: u32,
    pub enters: Place,
    pub leaves: Place,
    /// Of every address, all but its last digits.
    pub sources: &'static str,
    destinations: &'static str,
    /// The digits of the destination, where not everybody is there.
    only: &'static [&'static str],
    /// Whether the source becomes another.
    pub translated: bool,
}

impl Path {
    /// Whether it leaves by an interface that is not served.
    pub fn is_unserved(&self) -> bool {
        self.leaves.name == UNSERVED.name
    }
}

const fn path(
    (ingress, enters, leaves): (u32, Place, Place),
    sources: &'static str,
    (destinations, only): (&'static str, &'static [&'static str]),
    translated: bool,
) -> Path {
    Path { ingress, enters, leaves, sources, destinations, only, translated }
}

/// All ways.
pub const PATHS: [Path; 15] = [
    path((IN, INSIDE, OUTSIDE), "10.0.1.", ("203.0.113.", &[]), true),
    path((IN, INSIDE, ARM_OUTSIDE), "10.0.1.", ("192.0.2.", &[]), true),
    path((IN, INSIDE, UNSERVED), "10.0.1.", ("10.9.0.", &["10"]), false),
    path((IN, INSIDE, HOST), "10.0.1.", ("10.0.1.", &["1"]), false),
    path((OUT, OUTSIDE, INSIDE), "203.0.113.", ("10.0.1.", &["10", "11"]), false),
    path((OUT, OUTSIDE, ARM_INSIDE), "203.0.113.", ("172.31.0.", &["10"]), false),
    path((OUT, OUTSIDE, HOST), "203.0.113.", ("198.51.100.", &["1"]), false),
    path((ARM, ARM_INSIDE, ARM_OUTSIDE), "172.31.0.", ("192.0.2.", &[]), true),
    path((ARM, ARM_OUTSIDE, INSIDE), "192.0.2.", ("10.0.1.", &["10", "11"]), false),
    path((IN, INSIDE, OUTSIDE), "2001:db8:1::", ("2001:db8:3::", &[]), false),
    path((IN, INSIDE, HOST), "2001:db8:1::", ("2001:db8:1::", &["1"]), false),
    path((OUT, OUTSIDE, INSIDE), "2001:db8:3::", ("2001:db8:1::", &["10", "11"]), false),
    path((OUT, OUTSIDE, ARM_INSIDE), "2001:db8:3::", ("2001:db8:a00::", &["10"]), false),
    path((ARM, ARM_INSIDE, ARM_OUTSIDE), "2001:db8:a00::", ("2001:db8:b00::", &[]), false),
    path((ARM, ARM_OUTSIDE, INSIDE), "2001:db8:b00::", ("2001:db8:1::", &["10", "11"]), false),
];

/// Last digits of addresses.
pub const DIGITS: [&str; 6] = ["10", "11", "12", "13", "14", "15"];

/// What a packet begins.
#[derive(Clone, Copy, Debug)]
pub enum Detail {
    /// Destination port.
    Udp(u16),
    /// Destination port, flags.
    Tcp(u16, u8),
    /// Code: 0, but others are passed on as well.
    Echo(u8),
    /// A protocol without ports.
    Other(u8),
}

/// Flags that a first packet can have, when running connections are picked up.
pub const FIRST_FLAGS: [u8; 5] = [SYN, SYN | URG, ACK, ACK | PSH, ACK | URG];

/// Who sends a frame, and who is to get its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    by: [u8; 6],
    to: Option<IpAddr>,
}

impl Ends {
    /// Of a frame with an Ethernet header.
    pub fn of(frame: &[u8]) -> Self {
        let by = frame.get(6..12).and_then(|mac| mac.try_into().ok()).expect("an Ethernet header");
        Self { by, to: Summary::of(frame).map(|packet| packet.destination) }
    }
}

/// A first packet.
#[derive(Clone, Debug)]
pub struct Probe {
    pub path: Path,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Source port, or identifier of an echo.
    pub port: u16,
    detail: Detail,
}

impl Probe {
    /// Between a source and a destination, which are counted in `DIGITS`.
    pub fn new(path: Path, (source, destination): (usize, usize), port: u16, detail: Detail) -> Self {
        let address = |network: &str, digits: &str| format!("{network}{digits}").parse().expect("an address");
        let destinations = if path.only.is_empty() { &DIGITS } else { path.only };
        Self {
            path,
            source: address(path.sources, DIGITS[source % DIGITS.len()]),
            destination: address(path.destinations, destinations[destination % destinations.len()]),
            port,
            detail,
        }
    }

    /// Its number as a protocol.
    pub fn protocol(&self) -> u8 {
        match self.detail {
            Detail::Udp(_) => protocol::UDP,
            Detail::Tcp(..) => protocol::TCP,
            Detail::Echo(_) if self.source.is_ipv4() => protocol::ICMP,
            Detail::Echo(_) => protocol::ICMPV6,
            Detail::Other(number) => number,
        }
    }

    /// Source and destination port.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.detail {
            Detail::Udp(port) | Detail::Tcp(port, _) => Some((self.port, port)),
            Detail::Echo(_) | Detail::Other(_) => None,
        }
    }

    /// TCP flags.
    pub fn flags(&self) -> Option<u8> {
        if let Detail::Tcp(_, flags) = self.detail { Some(flags) } else { None }
    }

    /// Type and code of an ICMP message.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let kind = if self.source.is_ipv4() { 8 } else { 128 };
        if let Detail::Echo(code) = self.detail { Some((kind, code)) } else { None }
    }

    /// What two probes must not share if each is to begin a flow, and to keep its port when it is translated.
    pub fn place(&self) -> (u8, Option<u16>, bool) {
        let port = if matches!(self.detail, Detail::Other(_)) { None } else { Some(self.port) };
        (self.protocol(), port, self.source.is_ipv4())
    }

    /// What has to become of it where the rules say this: what is done with it, and between whom it is then.
    pub fn fate(&self, says: &str) -> (Action, Ends) {
        let port = |name: &str| PORTS.iter().find(|port| port.name == name).expect("one of ours").mac(1);
        let as_it_came = Ends::of(&self.frame());
        match says {
            "deny" => (Action::Drop, as_it_came),
            "allow" if self.path.leaves.is_host() || self.path.is_unserved() => (Action::Pass, as_it_came),
            "allow" => (Action::Redirect, Ends { by: port(self.path.leaves.name), to: Some(self.destination) }),
            _ => (Action::Redirect, Ends { by: port(self.path.enters.name), to: Some(self.source) }),
        }
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let packet = arriving(self.path.ingress, &self.source.to_string(), &self.destination.to_string());
        match self.detail {
            Detail::Udp(port) => packet.udp(self.port, port),
            Detail::Tcp(port, flags) => packet.tcp(self.port, port, flags, 1000),
            Detail::Echo(code) if self.source.is_ipv4() => packet.icmp(8, code, u32::from(self.port) << 16),
            Detail::Echo(code) => packet.icmp(128, code, u32::from(self.port) << 16),
            Detail::Other(number) => packet.protocol(number),
        }
        .payload_of(20)
        .build()
    }
}
