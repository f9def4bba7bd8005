//! The connections that fill a flow table, and the random order in which they are visited.
//!
//! Entries are as the datapath makes them, two a connection, the responder's first, but for one thing: an IPv4 entry
//! rewrites its packets to the tuple of *another* connection, the next in a random cycle through all of them. So a frame
//! that `BPF_PROG_TEST_RUN` hands to the program again, as the program left it, is a packet of the next connection; see
//! [`super::measure`]. IPv6 is not translated, so its entries are the ordinary ones.
//!
//! # Invariants
//! - Numbers of connections map to tuples one to one, in both directions of the connection.
//! - Entries are inserted in the order of the numbers and visited in the order of the cycle: neighbours in time are not
//!   neighbours in memory.

use anyhow::Result;
use forwarder::datapath::{Datapath, Filler, Key};
use forwarder_ebpf::abi::{
    Birth, FlowEntry, FlowKey4, FlowKey6, NextHop, SharedU16, SharedU32, SharedU64, Side, status,
};
use forwarder_kit::packet::{flag, protocol};
use std::net::Ipv6Addr;

/// Epoch that all entries have.
pub const EPOCH: u32 = 1;
/// Inside hosts; further connections are further ports of the same hosts.
const HOSTS: u32 = 16_384;
/// Ports of one public address that are used.
const PORTS: u32 = 60_000;
/// First of these ports, and of the inside hosts' ports.
const FIRST_PORT: u32 = 1024;
/// Remote hosts: 198.18.0.0/15, the network for benchmarks (RFC 2544, appendix C.2.2).
const REMOTES: u32 = 1 << 17;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// An IPv4 packet's.
pub type Tuple4 = Tuple<[u8; 4]>;
/// An IPv6 packet's.
pub type Tuple6 = Tuple<[u8; 16]>;

/// Spreads neighbouring numbers over 32 bits, one to one (the finaliser of MurmurHash3).
pub fn mix(number: u32) -> u32 {
    let number = (number ^ (number >> 16)).wrapping_mul(0x85eb_ca6b);
    let number = (number ^ (number >> 13)).wrapping_mul(0xc2b2_ae35);
    number ^ (number >> 16)
}

fn remote4(number: u32) -> [u8; 4] {
    (0xc612_0000 | (mix(number) % REMOTES)).to_be_bytes()
}

fn inside_port(number: u32) -> u16 {
    (FIRST_PORT + number / HOSTS) as u16
}

/// A connection's packets as they enter inside.
pub fn inside4(number: u32) -> Tuple4 {
    let source = (0x0a40_0000 | (number % HOSTS)).to_be_bytes();
    let (source_port, destination_port) = (inside_port(number), 443);
    Tuple { source, destination: remote4(number), source_port, destination_port }
}

/// Its answers as they enter outside: every connection has a public port of its own.
pub fn outside4(number: u32) -> Tuple4 {
    let destination = (0xcb00_7101 + number / PORTS).to_be_bytes();
    let destination_port = (FIRST_PORT + number % PORTS) as u16;
    Tuple { source: remote4(number), destination, source_port: 443, destination_port }
}

/// A connection's IPv6 packets as they enter inside.
pub fn inside6(number: u32) -> Tuple6 {
    let inside = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x64, (number % HOSTS) as u16);
    let remote = mix(number) % REMOTES;
    let remote = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, (remote >> 16) as u16, remote as u16);
    let (source, destination) = (inside.octets(), remote.octets());
    Tuple { source, destination, source_port: inside_port(number), destination_port: 443 }
}

/// A random cycle through the connections `0..count`, the same every time (Sattolo's shuffle, xorshift).
#[derive(Debug)]
pub struct Cycle {
    order: Vec<u32>,
}

impl Cycle {
    /// Through `count` connections.
    pub fn new(count: u32) -> Self {
        let mut order: Vec<u32> = (0..count).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for last in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(last, (state % last as u64) as usize);
        }
        Self { order }
    }

    /// The connection at a place of the cycle, which begins again behind its end.
    pub fn at(&self, place: usize) -> u32 {
        self.order[place % self.order.len()]
    }

    /// How many connections there are.
    pub fn length(&self) -> usize {
        self.order.len()
    }

    /// The connection after each, by number.
    fn successors(&self) -> Vec<u32> {
        let mut successors = vec![0; self.order.len()];
        for (place, number) in self.order.iter().enumerate() {
            successors[*number as usize] = self.at(place + 1);
        }
        successors
    }
}

/// Where packets leave: each side's egress with the ingress's own link-layer address as next hop, so that what has left is
/// addressed to us again.
#[derive(Clone, Copy, Debug)]
pub struct Hops {
    /// Of packets that enter inside.
    pub out: NextHop,
    /// Of packets that enter outside.
    pub back: NextHop,
}

/// Fills the IPv4 table with the cycle's connections, all of one protocol, and with one more that leads to itself: number
/// `cycle.length()`.
pub fn fill4(datapath: &Datapath, cycle: &Cycle, protocol: u8, hops: Hops) -> Result<()> {
    let filler = Filler::new(&datapath.flows4)?;
    let mut successors = cycle.successors();
    successors.push(cycle.length() as u32);
    for (number, next) in (0..).zip(successors) {
        let (from, to) = (outside4(number), outside4(next));
        insert(&filler, key4(&from, protocol, Side::Outside), &entry4(&to, protocol, Side::Inside, hops.back))?;
        let (from, to) = (inside4(number), inside4(next));
        insert(&filler, key4(&from, protocol, Side::Inside), &entry4(&to, protocol, Side::Outside, hops.out))?;
    }
    Ok(())
}

/// Fills the IPv6 table with the cycle's connections, all UDP.
pub fn fill6(datapath: &Datapath, cycle: &Cycle, hops: Hops) -> Result<()> {
    let filler = Filler::new(&datapath.flows6)?;
    for number in 0..cycle.length() as u32 {
        let tuple = inside6(number);
        let back = entry(protocol::UDP, 0, Side::Inside, hops.back);
        insert(&filler, key6(&reversed(&tuple), Side::Outside), &back)?;
        let out = entry(protocol::UDP, status::ORIGINATOR, Side::Outside, hops.out);
        insert(&filler, key6(&tuple, Side::Inside), &out)?;
    }
    Ok(())
}

fn insert<K: Key>(filler: &Filler<'_, K>, key: K, entry: &FlowEntry) -> Result<()> {
    filler
        .insert(&key, entry, &Birth::default())
        .map_err(|refused| anyhow::anyhow!("the flow table refuses: {refused:?}"))
}

/// A tuple the other way round.
pub fn reversed<A: Copy>(tuple: &Tuple<A>) -> Tuple<A> {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
    }
}

/// The key of packets with this tuple that enter by a side.
pub fn key4(tuple: &Tuple4, protocol: u8, side: Side) -> FlowKey4 {
    FlowKey4 {
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port.to_be_bytes(),
        destination_port: tuple.destination_port.to_be_bytes(),
        protocol,
        side: side as u8,
        zero: [0; 2],
    }
}

/// The key of UDP packets with this tuple that enter by a side.
pub fn key6(tuple: &Tuple6, side: Side) -> FlowKey6 {
    FlowKey6 {
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port.to_be_bytes(),
        destination_port: tuple.destination_port.to_be_bytes(),
        protocol: protocol::UDP,
        side: side as u8,
        zero: [0; 2],
    }
}

fn entry4(to: &Tuple4, protocol: u8, partner: Side, hop: NextHop) -> FlowEntry {
    let direction = match partner {
        Side::Outside => status::ORIGINATOR | status::SOURCE_NAT,
        _ => status::DESTINATION_NAT,
    };
    let entry = entry(protocol, direction, partner, hop);
    entry.leave_as(&key4(to, protocol, partner));
    entry
}

/// An entry of an established connection.
fn entry(protocol: u8, direction: u32, partner: Side, hop: NextHop) -> FlowEntry {
    let state = match protocol {
        protocol::TCP => status::ESTABLISHED | u32::from(flag::SYN | flag::FIN | flag::RST),
        _ => status::STREAM,
    };
    let partner = (partner as u32) << status::PARTNER_SHIFT;
    FlowEntry {
        next_hop: SharedU64::new(hop.pack()),
        epoch: SharedU16::new(EPOCH as u16),
        status: SharedU32::new(status::REPLIED | state | direction | partner),
        mtu: SharedU16::new(1500),
        ..FlowEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_cycle_visits_everyone_once_and_begins_again() {
        for count in [1, 2, 3, 1000] {
            let cycle = Cycle::new(count);
            let (mut seen, successors, mut number) = (HashSet::new(), cycle.successors(), 0);
            while seen.insert(number) {
                number = successors[number as usize];
            }
            assert_eq!((seen.len(), number), (count as usize, 0));
            assert_eq!(cycle.at(cycle.length()), cycle.at(0));
        }
    }

    #[test]
    fn numbers_and_tuples_are_one_to_one() {
        let numbers = 0..300_000;
        let all: HashSet<_> = numbers.clone().map(|number| key4(&inside4(number), 17, Side::Inside)).collect();
        assert_eq!(all.len(), numbers.len());
        let all: HashSet<_> = numbers.clone().map(|number| key4(&outside4(number), 17, Side::Outside)).collect();
        assert_eq!(all.len(), numbers.len());
        let all: HashSet<_> = numbers.clone().map(|number| key6(&inside6(number), Side::Inside)).collect();
        assert_eq!(all.len(), numbers.len());
    }
}
