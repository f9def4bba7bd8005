//! Who talks most: what connections have moved since the last look at the table, and the biggest of them.
//!
//! Counters are subtracted from those of the look before, so a rate is exact over the time between the two. For that every
//! connection that is meant is remembered with its four counters, which is 56 bytes with an IPv4 key and 80 with an IPv6 one;
//! only while somebody watches. All else is bounded by how many are asked for, but for the sums of inside hosts, which are
//! there during a look.
//!
//! A slot is looked at in ascending order in every look, so what is remembered is a list that is walked along, not a map.

mod best;

use super::filter::{Filter, protocol_name};
use super::list::{Clock, Key, Tuple, is_meant, tuple};
use crate::datapath::{Datapath, DatapathError, FlowTable, Seen};
use best::Best;
use forwarder_ebpf::abi::{FlowEntry, FlowKey4, FlowKey6, Side, Ticks, status};
use forwarder_ebpf::conntrack::State;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::iter::{Flatten, Peekable};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// Connections whose answering entries are read together: as the sweeper does it, and for the same reason.
const AT_ONCE: usize = 1 << 16;

/// The biggest talkers over a time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Top {
    /// That time, seconds.
    pub seconds: f64,
    /// Connections that are meant, silent ones included.
    pub connections: u64,
    /// What all their originators sent.
    pub originator: Rates,
    /// What was sent to them.
    pub responder: Rates,
    /// The biggest connections by rate and the biggest by packets, both directions together; none that is silent.
    pub talkers: Vec<Talker>,
    /// The biggest inside hosts by rate, by packets, and by connections.
    pub hosts: Vec<Host>,
}

/// What is moved in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Bits of IP packets, without Ethernet.
    pub bits_per_second: f64,
    /// Packets.
    pub packets_per_second: f64,
}

/// A connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Talker {
    /// IP protocol, by name where it has one.
    pub protocol: String,
    /// As its originator sends it.
    pub original: Tuple,
    /// As it leaves; equal to `original` when nothing is translated.
    pub translated: Tuple,
    /// How far it is.
    pub state: String,
    /// From the originator.
    pub originator: Rates,
    /// To the originator.
    pub responder: Rates,
}

/// An inside host: who originates connections, or whom connections from outside reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its own address.
    pub address: IpAddr,
    /// Its connections, silent ones included.
    pub connections: u64,
    /// From it.
    pub sent: Rates,
    /// To it.
    pub received: Rates,
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watch {
    filter: Filter,
    most: usize,
    before: Option<Look>,
}

/// What was seen in a look.
#[derive(Debug)]
struct Look {
    at: Instant,
    now: Ticks,
    v4: Readings<FlowKey4>,
    v6: Readings<FlowKey6>,
}

/// By slot. In pieces, so that those of the look before are freed while those of this one are made.
type Readings<K> = Vec<Vec<Reading<K>>>;

/// Counters of a connection.
#[derive(Clone, Copy, Debug)]
struct Reading<K> {
    index: u32,
    key: K,
    /// From the originator, and to it.
    ways: [Counts; 2],
}

const _: () = assert!(size_of::<Reading<FlowKey4>>() == 56);
const _: () = assert!(size_of::<Reading<FlowKey6>>() == 80);

/// Counters of a direction, or by how much they have moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    packets: u64,
    bytes: u64,
}

impl Watch {
    /// Of the connections that are meant; of each kind at most `most`, which is at least 1, are shown.
    pub fn new(filter: Filter, most: usize) -> Self {
        Self { filter, most, before: None }
    }

    /// Looks at the whole table. `None`: it is the first look, and there is nothing to subtract from.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn look(&mut self, datapath: &Datapath, clock: Clock) -> Result<Option<Top>, DatapathError> {
        let at = Instant::now();
        let before = self.before.take();
        let elapsed = before.as_ref().map(|before| (at.duration_since(before.at), clock.since(before.now)));
        let (v4, v6) = before.map(|before| (before.v4, before.v6)).unwrap_or_default();
        let mut tally = Tally::new(self.most);
        let young = elapsed.map(|(_, ticks)| (clock, ticks));
        let v4 = Pass::new(&datapath.flows4, v4, young, &mut tally).run(&self.filter)?;
        let v6 = Pass::new(&datapath.flows6, v6, young, &mut tally).run(&self.filter)?;
        self.before = Some(Look { at, now: clock.now, v4, v6 });
        Ok(elapsed.map(|(elapsed, _)| tally.finish(elapsed.as_secs_f64())))
    }
}

/// A look at one table.
struct Pass<'a, K> {
    table: &'a FlowTable<K>,
    before: Peekable<Flatten<std::vec::IntoIter<Vec<Reading<K>>>>>,
    after: Readings<K>,
    /// Originators' entries whose answers are to be read.
    found: Vec<Seen<K>>,
    /// How old a connection may be that the look before has not seen because there was none. `None`: it is the first look.
    young: Option<(Clock, Ticks)>,
    tally: &'a mut Tally,
}

impl<'a, K: Key + PartialEq> Pass<'a, K> {
    fn new(table: &'a FlowTable<K>, before: Readings<K>, young: Option<(Clock, Ticks)>, tally: &'a mut Tally) -> Self {
        let before = before.into_iter().flatten().peekable();
        Self { table, before, after: Vec::new(), found: Vec::new(), young, tally }
    }

    fn run(mut self, filter: &Filter) -> Result<Readings<K>, DatapathError> {
        self.table.visit(|seen| {
            if !is_meant(filter, seen) {
                return Ok(());
            }
            self.found.push(seen.clone());
            if self.found.len() < AT_ONCE { Ok(()) } else { self.compare() }
        })?;
        self.compare()?;
        Ok(self.after)
    }

    /// What those have moved that were found.
    fn compare(&mut self) -> Result<(), DatapathError> {
        let partners: Vec<_> = self.found.iter().map(|seen| seen.key.partner(&seen.entry)).collect();
        let mut answers = vec![Counts::default(); partners.len()];
        self.table.read_many(&partners, |at, answer| answers[at] = answer.map(Counts::of).unwrap_or_default())?;
        let mut readings = Vec::with_capacity(answers.len());
        for (seen, answer) in std::mem::take(&mut self.found).iter().zip(answers) {
            let reading = Reading { index: seen.index, key: seen.key, ways: [Counts::of(&seen.entry), answer] };
            let moved = moved(&reading, take_before(&mut self.before, &reading), || self.is_new(seen));
            self.tally.add(seen, moved);
            readings.push(reading);
        }
        self.after.push(readings);
        Ok(())
    }

    /// Whether all that it has moved was since the look before.
    fn is_new(&self, seen: &Seen<K>) -> bool {
        self.young.is_some_and(|(clock, elapsed)| clock.since(seen.birth.since.load()) <= elapsed)
    }
}

/// The reading of the same connection in the look before; all before it are passed by.
fn take_before<K: PartialEq>(
    before: &mut Peekable<impl Iterator<Item = Reading<K>>>,
    reading: &Reading<K>,
) -> Option<Reading<K>> {
    while before.next_if(|before| before.index < reading.index).is_some() {}
    before.next_if(|before| before.index == reading.index).filter(|before| before.key == reading.key)
}

/// By how much a connection's counters have moved since `before`. One that was not seen then and is not new, because the
/// filter's state has let it in only now, has moved nothing that is known of.
fn moved<K>(now: &Reading<K>, before: Option<Reading<K>>, is_new: impl FnOnce() -> bool) -> [Counts; 2] {
    match before {
        Some(before) => [0, 1].map(|way| now.ways[way].since(before.ways[way])),
        None if is_new() => now.ways,
        None => Default::default(),
    }
}

impl Counts {
    fn of(entry: &FlowEntry) -> Self {
        Self { packets: entry.packets.load(), bytes: entry.bytes.load() }
    }

    /// Counters never go back: if these have, it is another entry, which began at zero.
    fn since(self, before: Self) -> Self {
        if self.packets < before.packets {
            return self;
        }
        // The two are not read at once, so one may be of a packet more.
        Self { packets: self.packets - before.packets, bytes: self.bytes.saturating_sub(before.bytes) }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    fn rates(self, seconds: f64) -> Rates {
        let per_second = |number: u64| number as f64 / seconds.max(0.001);
        Rates { bits_per_second: per_second(self.bytes * 8), packets_per_second: per_second(self.packets) }
    }
}

/// A connection that is big so far.
#[derive(Clone, Copy, Debug)]
struct Found {
    protocol: u8,
    state: State,
    original: (SocketAddr, SocketAddr),
    translated: (SocketAddr, SocketAddr),
    ways: [Counts; 2],
}

/// An inside host.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    connections: u64,
    sent: Counts,
    received: Counts,
}

/// What a look comes to.
struct Tally {
    most: usize,
    connections: u64,
    ways: [Counts; 2],
    by_bytes: Best<Found>,
    by_packets: Best<Found>,
    hosts: HashMap<IpAddr, Sum>,
}

impl Tally {
    fn new(most: usize) -> Self {
        let (by_bytes, by_packets) = (Best::new(most), Best::new(most));
        Self { most, connections: 0, ways: Default::default(), by_bytes, by_packets, hosts: HashMap::new() }
    }

    fn add<K: Key>(&mut self, Seen { key, entry, .. }: &Seen<K>, ways: [Counts; 2]) {
        self.connections += 1;
        self.ways[0].add(ways[0]);
        self.ways[1].add(ways[1]);
        let bits = entry.status.load();
        let (original, translated) = (key.ends(), key.translated(entry));
        let found =
            || Found { protocol: key.protocol(), state: State::of(key.protocol(), bits), original, translated, ways };
        self.by_bytes.offer(ways[0].bytes + ways[1].bytes, found);
        self.by_packets.offer(ways[0].packets + ways[1].packets, found);
        let is_inside = |side: u8| side == Side::Inside as u8;
        // With one interface for both sides, who is translated is inside.
        let is_reached = !is_inside(key.side())
            && (is_inside(entry.partner_side())
                || bits & status::DESTINATION_NAT != 0 && bits & status::SOURCE_NAT == 0);
        let (host, [sent, received]) = if is_reached { (translated.1, [ways[1], ways[0]]) } else { (original.0, ways) };
        let sum = self.hosts.entry(host.ip()).or_default();
        sum.connections += 1;
        sum.sent.add(sent);
        sum.received.add(received);
    }

    fn finish(self, seconds: f64) -> Top {
        let mut known = HashSet::new();
        let talkers = self.by_bytes.into_items().chain(self.by_packets.into_items());
        let talkers = talkers.filter(|found| known.insert((found.protocol, found.original)));
        let talkers = talkers.map(|found| found.show(seconds)).collect();
        let [mut by_bytes, mut by_packets, mut by_connections] = [(); 3].map(|()| Best::new(self.most));
        for (address, sum) in &self.hosts {
            by_bytes.offer(sum.sent.bytes + sum.received.bytes, || *address);
            by_packets.offer(sum.sent.packets + sum.received.packets, || *address);
            by_connections.offer(sum.connections, || *address);
        }
        let hosts = by_bytes.into_items().chain(by_packets.into_items()).chain(by_connections.into_items());
        let hosts: HashSet<_> = hosts.collect();
        let hosts = hosts.into_iter().map(|address| {
            let Sum { connections, sent, received } = self.hosts[&address];
            Host { address, connections, sent: sent.rates(seconds), received: received.rates(seconds) }
        });
        let [originator, responder] = self.ways.map(|way| way.rates(seconds));
        Top { seconds, connections: self.connections, originator, responder, talkers, hosts: hosts.collect() }
    }
}

impl Found {
    fn show(&self, seconds: f64) -> Talker {
        let [originator, responder] = self.ways.map(|way| way.rates(seconds));
        Talker {
            protocol: protocol_name(self.protocol),
            original: tuple(self.original),
            translated: tuple(self.translated),
            state: self.state.name().to_owned(),
            originator,
            responder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(index: u32, key: u8, packets: u64) -> Reading<u8> {
        Reading { index, key, ways: [Counts { packets, bytes: packets * 100 }, Counts { packets: 1, bytes: 40 }] }
    }

    #[test]
    fn counters_are_subtracted_from_those_of_the_same_connection() {
        let mut before =
            [reading(1, 1, 10), reading(4, 4, 10), reading(7, 7, 10), reading(9, 9, 10)].into_iter().peekable();
        let mut moved_by = |now: Reading<u8>, is_new| moved(&now, take_before(&mut before, &now), || is_new)[0].packets;
        assert_eq!(moved_by(reading(1, 1, 25), false), 15);
        assert_eq!(moved_by(reading(3, 3, 5), true), 5, "it is new, in a slot that was vacant");
        assert_eq!(moved_by(reading(4, 5, 12), true), 12, "another has the slot now");
        assert_eq!(moved_by(reading(6, 6, 12), false), 0, "it was there and not seen");
        assert_eq!(moved_by(reading(9, 9, 4), true), 4, "the same ends again, from the beginning");
        assert_eq!(moved_by(reading(11, 1, 4), true), 4);
    }

    #[test]
    fn rates_are_over_the_time_that_passed() {
        let rates = Counts { packets: 30, bytes: 3000 }.rates(1.5);
        assert_eq!(rates, Rates { bits_per_second: 16_000.0, packets_per_second: 20.0 });
    }
}
