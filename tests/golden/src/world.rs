//! The little network that all cases share: interfaces, stations, routes. Both bodies are given the same one.
//!
//! ```text
//! client 10.0.1.10  --- IN 10.0.1.1     OUT 198.51.100.1 --- router 198.51.100.254 --- all the world
//! second 10.0.1.11  /                                     \- station 198.51.100.50; .77 does not answer ARP
//! guest 172.31.0.10 --- ARM 172.31.0.1 (serves both sides) --- gateway 172.31.0.254 --- 192.0.2.0/24
//!                       OTHER 10.9.0.1 (not served) --- 10.9.0.10
//! ```
//! IPv6 is the same with 2001:db8:1::/64 (IN), :2::/64 (OUT), :a00::/64 (ARM, the world behind it :b00::/48), :9::/64 (OTHER).

use forwarder::config::Role;
use forwarder::firewall::compile::{Matcher, compile};
use forwarder::plan::FirewallPlan;
use forwarder_ebpf::abi::firewall::Line;
use forwarder_ebpf::abi::{Control, IfaceConfig, NatAction, NatRule, Side};
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::tables::{Fate, Route};
use forwarder_kit::Packet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Interface index of the inside.
pub const IN: u32 = 11;
/// Interface index of the outside.
pub const OUT: u32 = 12;
/// Interface index of the one that serves both.
pub const ARM: u32 = 13;
/// Interface index of the one that is not served.
pub const OTHER: u32 = 14;

/// Inside; its neighbour has station 0x10.
pub const CLIENT: &str = "10.0.1.10";
/// Another one inside.
pub const SECOND: &str = "10.0.1.11";
/// Address of `OUT`, to which the inside is translated.
pub const PUBLIC: &str = "198.51.100.1";
/// Somebody out in the world.
pub const SERVER: &str = "203.0.113.10";
/// `CLIENT`, IPv6.
pub const CLIENT6: &str = "2001:db8:1::10";
/// `SERVER`, IPv6.
pub const SERVER6: &str = "2001:db8:3::10";
/// Behind the interface that serves both sides.
pub const GUEST: &str = "172.31.0.10";
/// Address of `ARM`.
pub const ARM_PUBLIC: &str = "172.31.0.1";
/// Out in the world behind `ARM`.
pub const ARM_SERVER: &str = "192.0.2.10";

/// One interface of ours.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: &'static str,
    /// Slot in counters.
    pub slot: u8,
    /// `Side` that it serves, 0 for none.
    pub side: u8,
    /// Address in a /24.
    pub address4: &'static str,
    /// Address in a /64.
    pub address6: &'static str,
    /// Who sends and gets what comes from or goes to anybody not in `STATIONS`.
    pub router: u8,
}

/// The interfaces.
pub const PORTS: [Port; 4] = [
    port(IN, "in0", Side::Inside as u8, ("10.0.1.1", "2001:db8:1::1"), 0x10),
    port(OUT, "out0", Side::Outside as u8, (PUBLIC, "2001:db8:2::1"), 0xfe),
    port(ARM, "arm0", Side::Both as u8, (ARM_PUBLIC, "2001:db8:a00::1"), 0xfe),
    port(OTHER, "other0", 0, ("10.9.0.1", "2001:db8:9::1"), 0x10),
];

const fn port(ifindex: u32, name: &'static str, side: u8, addresses: (&'static str, &'static str), router: u8) -> Port {
    let (address4, address6) = addresses;
    Port { ifindex, name, slot: (ifindex - IN) as u8, side, address4, address6, router }
}

impl Port {
    /// The interface with this index.
    pub fn of(ifindex: u32) -> Self {
        PORTS[(ifindex - IN) as usize]
    }

    /// Link-layer address of a station on this interface; ours is station 1.
    pub fn mac(&self, station: u8) -> [u8; 6] {
        [2, 0, 0, 0, self.slot + 1, station]
    }

    /// What the controller writes of it.
    pub fn config(&self) -> IfaceConfig {
        IfaceConfig {
            mac: self.mac(1),
            side: self.side,
            slot: self.slot,
            address4: v4(self.address4),
            address6: v6(self.address6),
            mtu: 1500,
        }
    }
}

/// Neighbours: where, who, the last byte of their link-layer address.
pub const STATIONS: &[(u32, &str, u8)] = &[
    (IN, CLIENT, 0x10),
    (IN, CLIENT6, 0x10),
    (IN, SECOND, 0x11),
    (IN, "2001:db8:1::11", 0x11),
    (OUT, "198.51.100.50", 0x50),
    (OUT, "198.51.100.254", 0xfe),
    (OUT, "2001:db8:2::fe", 0xfe),
    (ARM, GUEST, 0x10),
    (ARM, "2001:db8:a00::10", 0x10),
    (ARM, "172.31.0.254", 0xfe),
    (ARM, "2001:db8:a00::fe", 0xfe),
    (OTHER, "10.9.0.10", 0x10),
    (OTHER, "2001:db8:9::10", 0x10),
];

/// What is not on a link.
pub const ROUTES: &[(&str, Way)] = &[
    ("0.0.0.0/0", Way::Via(OUT, 1500)),
    ("::/0", Way::Via(OUT, 1500)),
    ("203.0.113.64/26", Way::Via(OUT, 1400)),
    ("2001:db8:40::/48", Way::Via(OUT, 1400)),
    ("203.0.113.128/30", Way::Refused(Fate::Blackhole)),
    ("203.0.113.132/30", Way::Refused(Fate::Unreachable)),
    ("203.0.113.136/30", Way::Refused(Fate::Prohibited)),
    ("2001:db8:80::/48", Way::Refused(Fate::Blackhole)),
    ("2001:db8:81::/48", Way::Refused(Fate::Unreachable)),
    ("2001:db8:82::/48", Way::Refused(Fate::Prohibited)),
    ("192.0.2.0/24", Way::Via(ARM, 1500)),
    ("2001:db8:b00::/48", Way::Via(ARM, 1500)),
];

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the router of this interface (its station `Port::router`), packets up to an MTU.
    Via(u32, u16),
    /// Nowhere.
    Refused(Fate),
}

impl Way {
    /// What the FIB answers.
    pub fn route(self) -> Route {
        match self {
            Self::Via(ifindex, mtu) => {
                let port = Port::of(ifindex);
                Route::forward(ifindex, port.mac(port.router), mtu)
            }
            Self::Refused(fate) => Route::refusing(fate),
        }
    }
}

/// What the controller has written before a case begins.
#[derive(Clone, Debug)]
pub struct World {
    /// The switches.
    pub control: Control,
    /// Interfaces by index.
    pub ifaces: Vec<(u32, IfaceConfig)>,
    /// Source NAT rules.
    pub rules: Vec<NatRule>,
    /// Their addresses.
    pub addresses: Vec<[u8; 4]>,
    /// The host's own ports.
    pub host_ports: Vec<u16>,
    /// The firewall's rules, compiled.
    pub policy: Vec<Line>,
}

/// Entries of each flow table: small, so that a case can fill it.
pub const CAPACITY: u32 = 16;

impl Default for World {
    /// What is inside, is translated to the address of the interface that it leaves by; the outside may begin nothing.
    fn default() -> Self {
        let control = Control {
            epoch: 7,
            port_first: 1024,
            port_last: 65_535,
            inside_allowed: 1,
            fragment_ticks: 100_000,
            icmp_per_second: 1000,
            sample_mask: u32::MAX,
            ..Control::default()
        };
        let ifaces = PORTS.iter().map(|port| (port.ifindex, port.config())).collect();
        let world = Self { control, ifaces, rules: vec![], addresses: vec![], host_ports: vec![], policy: vec![] };
        world.translate("10.0.0.0/8", "0.0.0.0/0", &[PUBLIC]).translate("172.31.0.0/24", "0.0.0.0/0", &[ARM_PUBLIC])
    }
}

impl World {
    /// With other switches.
    pub fn with(mut self, change: impl FnOnce(&mut Control)) -> Self {
        change(&mut self.control);
        self
    }

    /// With this range of public ports.
    pub fn ports(self, first: u16, last: u16) -> Self {
        self.with(|control| (control.port_first, control.port_last) = (first, last))
    }

    /// With nothing translated.
    pub fn without_nat(mut self) -> Self {
        (self.rules, self.addresses, self.control.nat_rules) = (vec![], vec![], 0);
        self
    }

    /// With one more rule that translates.
    pub fn translate(self, from: &str, to: &str, addresses: &[&str]) -> Self {
        self.rule(from, to, NatAction::Translate, addresses)
    }

    /// With one more rule that exempts.
    pub fn exempt(self, from: &str, to: &str) -> Self {
        self.rule(from, to, NatAction::Exempt, &[])
    }

    fn rule(mut self, from: &str, to: &str, action: NatAction, addresses: &[&str]) -> Self {
        let ((from, from_mask), (to, to_mask)) = (masked(from), masked(to));
        let first_address = self.addresses.len() as u16;
        let (addresses_of, action) = (addresses.len() as u16, action as u32);
        self.rules.push(NatRule { from, from_mask, to, to_mask, first_address, addresses: addresses_of, action });
        self.addresses.extend(addresses.iter().map(|address| v4(address)));
        self.control.nat_rules = self.rules.len() as u32;
        self
    }

    /// With a port that is the host's.
    pub fn host_port(mut self, port: u16) -> Self {
        self.host_ports.push(port);
        self
    }

    /// With an interface that is different.
    pub fn iface(mut self, ifindex: u32, change: impl FnOnce(&mut IfaceConfig)) -> Self {
        let (_, config) = self.ifaces.iter_mut().find(|(index, _)| *index == ifindex).expect("an interface of ours");
        change(config);
        self
    }

    /// With the rules of this configuration's firewall. The first has counter 2.
    pub fn rules(mut self, text: &str) -> Self {
        let (policy, switches) = compiled(text);
        (self.policy, self.control.firewall) = (policy, switches);
        self
    }

    /// The sim in this world.
    pub fn sim(&self) -> Sim {
        let mut sim = Sim::new().capacity(CAPACITY).nat(0, &self.rules, &self.addresses);
        sim.set_control(self.control);
        if !self.policy.is_empty() {
            sim.set_policy(&self.policy);
        }
        for (ifindex, config) in &self.ifaces {
            sim.set_iface(*ifindex, *config);
        }
        for port in self.host_ports.iter().copied() {
            sim = sim.host_port(port);
        }
        for port in PORTS {
            set_route(&mut sim, &format!("{}/24", port.address4), Some(Route::without_neighbour(port.ifindex)));
            set_route(&mut sim, &format!("{}/64", port.address6), Some(Route::without_neighbour(port.ifindex)));
            set_route(&mut sim, &format!("{}/32", port.address4), Some(Route::refusing(Fate::NotForwarded)));
            set_route(&mut sim, &format!("{}/128", port.address6), Some(Route::refusing(Fate::NotForwarded)));
            let broadcast = Ipv4Addr::from(u32::from_be_bytes(v4(port.address4)) | 0xff);
            set_route(&mut sim, &format!("{broadcast}/32"), Some(Route::refusing(Fate::NotForwarded)));
        }
        for (ifindex, address, station) in STATIONS {
            let bits = if address.contains(':') { 128 } else { 32 };
            let route = Route::forward(*ifindex, Port::of(*ifindex).mac(*station), 1500);
            set_route(&mut sim, &format!("{address}/{bits}"), Some(route));
        }
        for (prefix, way) in ROUTES {
            set_route(&mut sim, prefix, Some(way.route()));
        }
        sim
    }
}

/// The rules of a configuration for the world's interfaces: lines, and bits of `Control::firewall`.
pub fn compiled(text: &str) -> (Vec<Line>, u32) {
    let config = forwarder::config::parse(text, "rules").expect("the rules are right");
    let roles = [Role::Inside, Role::Outside, Role::Both].into_iter();
    let interfaces: Vec<_> = PORTS.iter().zip(roles).map(|(port, role)| (port.name.to_owned(), role)).collect();
    let plan = FirewallPlan::of(&config.firewall, &interfaces, &mut Vec::new());
    let counted = (2u64..).zip(&plan.matchers);
    let matchers: Vec<_> =
        counted.map(|(counter, matcher)| Matcher { word: matcher.word | counter << 16, ..matcher.clone() }).collect();
    (compile(&matchers, 1 << 24).expect("they are few").lines, plan.switches)
}

/// Sets or removes a route whose prefix is written as `address/bits`; bits behind the prefix do not count.
pub fn set_route(sim: &mut Sim, prefix: &str, route: Option<Route>) {
    let (address, bits) = split(prefix);
    let shift = |width: u32| width - u32::from(bits);
    match address {
        IpAddr::V4(address) => {
            let network = u32::from(address).checked_shr(shift(32)).unwrap_or(0);
            sim.set_route4(network.checked_shl(shift(32)).unwrap_or(0).to_be_bytes(), bits, route);
        }
        IpAddr::V6(address) => {
            let network = u128::from(address).checked_shr(shift(128)).unwrap_or(0);
            sim.set_route6(network.checked_shl(shift(128)).unwrap_or(0).to_be_bytes(), bits, route);
        }
    }
}

fn split(prefix: &str) -> (IpAddr, u8) {
    let (address, bits) = prefix.split_once('/').expect("address/bits");
    (address.parse().expect("an address"), bits.parse().expect("a number of bits"))
}

fn masked(prefix: &str) -> ([u8; 4], [u8; 4]) {
    let (IpAddr::V4(address), bits) = split(prefix) else { panic!("{prefix} is not IPv4") };
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    ((u32::from(address) & mask).to_be_bytes(), mask.to_be_bytes())
}

/// An IPv4 address of the world, in a key's order. Panics on any other text.
pub fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().expect("an IPv4 address").octets()
}

/// An IPv6 address of the world. Panics on any other text.
pub fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().expect("an IPv6 address").octets()
}

/// A packet as it comes in by an interface, from the neighbour that has `source`.
pub fn arriving(ingress: u32, source: &str, destination: &str) -> Packet {
    let port = Port::of(ingress);
    Packet::between(source, destination).macs(port.mac(station(ingress, source)), port.mac(1))
}

/// A packet as it goes out by an interface, to the neighbour that has `destination`, one hop later.
pub fn leaving(egress: u32, source: &str, destination: &str) -> Packet {
    let port = Port::of(egress);
    Packet::between(source, destination).macs(port.mac(1), port.mac(station(egress, destination))).ttl(63)
}

/// The neighbour that has an address, or the router.
fn station(ifindex: u32, address: &str) -> u8 {
    let known = STATIONS.iter().find(|(at, who, _)| (*at, *who) == (ifindex, address));
    known.map_or(Port::of(ifindex).router, |(.., station)| *station)
}
