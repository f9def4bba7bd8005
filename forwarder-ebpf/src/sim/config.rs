//! How a `Sim` is set up: what the controller would write into the maps, as a chain of calls.

use super::{Fib, Flows, Fragments, HANDSHAKES, Sim, State};
use crate::abi::firewall::{SOURCE_CELLS, SourceCell};
use crate::abi::{
    Control, Counter, Handshake, IfaceConfig, MAX_IFACES, MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatRule, OUTCOMES,
};
use crate::tables::Route;
use std::cell::RefCell;
use std::vec;

/// Interface indexes that have a configuration, as in the kernel's array.
const IFINDEXES: usize = 4096;
/// Entries of each flow table, unless a test says otherwise.
const CAPACITY: u32 = 4096;

impl Default for Sim {
    fn default() -> Self {
        Self::new()
    }
}

impl Sim {
    /// No interface, no route, no NAT. Inside may begin flows, outside may not; ports 1,024 to 65,535; ICMP errors 1,000 a
    /// second of 1,000 ticks; fragment trains live 30 s.
    pub fn new() -> Self {
        let control = Control {
            epoch: 1,
            port_first: 1024,
            port_last: 65_535,
            inside_allowed: 1,
            fragment_ticks: 30_000,
            icmp_per_second: 1000,
            ticks_per_second: 1000,
            sample_mask: u32::MAX,
            ..Control::default()
        };
        Self {
            flows4: Flows::new(CAPACITY),
            flows6: Flows::new(CAPACITY),
            fragments4: Fragments::default(),
            fragments6: Fragments::default(),
            ifaces: vec![IfaceConfig::default(); IFINDEXES],
            control,
            nat_rules: vec![NatRule::default(); 2 * MAX_NAT_RULES as usize],
            nat_addresses: vec![[0; 4]; 2 * MAX_NAT_ADDRESSES as usize],
            host_ports: vec![0; 1024],
            fib4: Fib::default(),
            fib6: Fib::default(),
            not_forwarding: vec![],
            counters: RefCell::new(vec![Counter::default(); (MAX_IFACES * OUTCOMES) as usize]),
            held: RefCell::default(),
            policy: None,
            rules: RefCell::default(),
            rule_log: RefCell::default(),
            unanswered: Default::default(),
            sources: (0..SOURCE_CELLS).map(|_| SourceCell::default()).collect(),
            handshakes: vec![Handshake::default(); HANDSHAKES],
            state: State::default(),
        }
    }

    /// Room for so many entries in each flow table; what was in them is gone.
    pub fn capacity(mut self, entries: u32) -> Self {
        (self.flows4, self.flows6) = (Flows::new(entries), Flows::new(entries));
        self
    }

    /// Has an interface served; an index of 4,096 or more is not.
    pub fn iface(mut self, ifindex: u32, config: IfaceConfig) -> Self {
        self.set_iface(ifindex, config);
        self
    }

    /// Changes the switches.
    pub fn control(mut self, change: impl FnOnce(&mut Control)) -> Self {
        change(&mut self.control);
        self
    }

    /// Fills a bank of source NAT. If it is the one that counts, its rules do at once.
    pub fn nat(mut self, bank: u32, rules: &[NatRule], addresses: &[[u8; 4]]) -> Self {
        fill(&mut self.nat_rules, bank * MAX_NAT_RULES, rules);
        fill(&mut self.nat_addresses, bank * MAX_NAT_ADDRESSES, addresses);
        if self.control.nat_bank == bank {
            self.control.nat_rules = rules.len() as u32;
        }
        self
    }

    /// A port that source NAT must leave to the host.
    pub fn host_port(mut self, port: u16) -> Self {
        if let Some(word) = self.host_ports.get_mut(usize::from(port / 64)) {
            *word |= 1 << (port % 64);
        }
        self
    }

    /// An IPv4 route.
    pub fn route4(mut self, prefix: [u8; 4], bits: u8, route: Route) -> Self {
        self.set_route4(prefix, bits, Some(route));
        self
    }

    /// An IPv6 route.
    pub fn route6(mut self, prefix: [u8; 16], bits: u8, route: Route) -> Self {
        self.set_route6(prefix, bits, Some(route));
        self
    }

    /// What random numbers follow from.
    pub fn seed(self, seed: u32) -> Self {
        // The generator stands still at zero.
        self.state.seed.set(seed | 1);
        self
    }

    /// The next random numbers, before those of the seed.
    pub fn random_numbers(self, numbers: impl IntoIterator<Item = u32>) -> Self {
        self.state.script.borrow_mut().extend(numbers);
        self
    }

    /// The switches as they are.
    pub fn control_now(&self) -> Control {
        self.control
    }

    /// Writes the switches while flows are there.
    pub fn set_control(&mut self, control: Control) {
        self.control = control;
    }

    /// Changes an interface while flows are there.
    pub fn set_iface(&mut self, ifindex: u32, config: IfaceConfig) {
        if let Some(place) = self.ifaces.get_mut(ifindex as usize) {
            *place = config;
        }
    }

    /// Replaces an IPv4 route, or removes it.
    pub fn set_route4(&mut self, prefix: [u8; 4], bits: u8, route: Option<Route>) {
        match route {
            Some(route) => self.fib4.set(prefix, bits, route),
            None => self.fib4.remove(prefix, bits),
        }
    }

    /// Switches forwarding of what enters by an interface; it is on for all.
    pub fn set_forwarding(&mut self, ifindex: u32, forwards: bool) {
        self.not_forwarding.retain(|other| *other != ifindex);
        if !forwards {
            self.not_forwarding.push(ifindex);
        }
    }

    /// Replaces an IPv6 route, or removes it.
    pub fn set_route6(&mut self, prefix: [u8; 16], bits: u8, route: Option<Route>) {
        match route {
            Some(route) => self.fib6.set(prefix, bits, route),
            None => self.fib6.remove(prefix, bits),
        }
    }
}

fn fill<T: Copy>(all: &mut [T], first: u32, new: &[T]) {
    for (place, value) in all.iter_mut().skip(first as usize).zip(new) {
        *place = *value;
    }
}
