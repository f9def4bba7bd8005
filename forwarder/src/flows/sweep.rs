//! Forgets connections whose time is up, and takes the census on the way: one pass over both tables in batches.
//!
//! A connection is idle when both its directions are. Its originator's entry is judged, and only when that has been idle
//! for too long is the other one looked up, together with many. What one pass retires, or the datapath did since, the next
//! one frees after a grace period: until then a program may have it in its hands.
//!
//! | state | timeout | under pressure |
//! | --- | --- | --- |
//! | closing, opening | `tcp_transitory` | at most 2 s |
//! | unreplied | its protocol's | at most 5 s |
//! | established | its protocol's | the same: never a victim |

use super::list::{Clock, Key, Removal};
use super::load::{GROUPS, Load};
use super::log::Logger;
use crate::config::Timeouts;
use crate::datapath::{Datapath, DatapathError, FlowTable, Seen, wait_for_programs};
use forwarder_ebpf::abi::{FlowEntry, NextHop, Ticks, status};
use forwarder_ebpf::conntrack::{Class, State, is_to_be_placed};
use forwarder_ebpf::flow_table::Tenancy;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// A next hop counts as in use when a flow has sent to it within this time.
const IN_USE: Duration = Duration::from_secs(10);

/// Passes in which each answering entry is once asked whether it is alone.
const ALONE_ASKED: u32 = 16;
/// Slots that are freed before more are looked at.
const FREED_AT_ONCE: usize = 1 << 14;
/// Connections that are judged together; some 7 MiB. Each time the whole table is mapped, which costs 10 ms with a million.
const JUDGED_AT_ONCE: usize = 1 << 16;

/// What a pass has seen.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// When it ended; `None` before the first.
    pub at: Option<Instant>,
    /// How long it took.
    pub took: Duration,
    /// How many there have been.
    pub passes: u32,
    /// Connections by protocol number and state.
    pub states: BTreeMap<(u8, State), u64>,
    /// IPv4 connections.
    pub flows4: u64,
    /// IPv6 connections.
    pub flows6: u64,
    /// Connections that began since the pass before, per second.
    pub new_per_second: f64,
    /// Connections whose time was up.
    pub expired: u64,
    /// By public address: connections and distinct ports.
    pub public: BTreeMap<Ipv4Addr, PortUse>,
    /// Next hops of flows with recent packets.
    pub next_hops: BTreeSet<(u16, [u8; 6])>,
    /// By family and side, what the datapath counts as unanswered and is not.
    pub unanswered_past: [u32; GROUPS],
    /// Datapath time of the pass.
    now: Ticks,
}

/// Use of a public address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortUse {
    /// Connections translated to it.
    pub flows: u64,
    /// Distinct ports that they have, over all protocols and remotes.
    pub ports: u32,
}

/// How a pass judges.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The clock that entries are stamped by.
    pub clock: Clock,
    /// Idle times.
    pub timeouts: Timeouts,
    /// The table is nearly full.
    pub pressure: bool,
    /// Flows are limited by source.
    pub sources: bool,
}

impl Judge {
    fn limit(&self, protocol: u8, bits: u32) -> Ticks {
        let mut limit = self.timeouts.of(Class::of(protocol, bits));
        if self.pressure {
            limit = match State::of(protocol, bits) {
                State::Closing | State::Opening => limit.min(Duration::from_secs(2)),
                State::Unreplied => limit.min(Duration::from_secs(5)),
                State::Established | State::HalfClosed => limit,
            };
        }
        self.ticks(limit)
    }

    fn ticks(&self, time: Duration) -> Ticks {
        let ticks = time.as_millis() * u128::from(self.clock.per_second) / 1000;
        Ticks::try_from(ticks).unwrap_or(Ticks::MAX / 2)
    }

    fn is_over(&self, protocol: u8, entry: &FlowEntry) -> bool {
        self.clock.since(entry.last_seen.load()) > self.limit(protocol, entry.status.load())
    }
}

/// One pass over everything.
///
/// # Errors
/// When the kernel refuses.
pub fn pass(
    datapath: &Datapath,
    judge: &Judge,
    (before, logger): (&Census, &mut Logger),
) -> Result<Census, DatapathError> {
    let begun = Instant::now();
    let load = Load::begin(datapath, judge.sources)?;
    let census = Census { passes: before.passes.wrapping_add(1), ..Census::default() };
    let since = judge.clock.since(before.now);
    let mut walk = Walk { judge, logger, since, new: 0, census, ports: Vec::new(), load };
    walk.census.flows4 = walk.table(&datapath.flows4)?;
    walk.census.flows6 = walk.table(&datapath.flows6)?;
    let Walk { new, mut census, ports, load, .. } = walk;
    census.unanswered_past = load.end(datapath)?;
    census.public = ports.into_iter().map(|(address, bits)| (address, bits.count())).collect();
    let elapsed = before.at.map(|at| begun.duration_since(at).as_secs_f64());
    census.new_per_second = elapsed.map_or(0.0, |elapsed| new as f64 / elapsed.max(0.001));
    census.now = judge.clock.now;
    census.at = Some(begun);
    census.took = begun.elapsed();
    Ok(census)
}

/// Ports of one public address, a bit each, and the flows that have them.
struct PortBits(Box<[u64; 1024]>, u64);

impl PortBits {
    fn count(&self) -> PortUse {
        PortUse { flows: self.1, ports: self.0.iter().map(|word| word.count_ones()).sum() }
    }
}

struct Walk<'a> {
    judge: &'a Judge,
    logger: &'a mut Logger,
    since: Ticks,
    new: u64,
    census: Census,
    ports: Vec<(Ipv4Addr, PortBits)>,
    load: Load,
}

/// What is collected on the way through one table, to be done many at a time.
struct Gathered<'t, K> {
    table: &'t FlowTable<K>,
    /// Connections whose originator is idle: to be judged.
    found: Vec<Seen<K>>,
    removal: Removal<'t, K>,
    /// Directions that have to say again where they stand.
    unplaced: Vec<K>,
    /// Flags that were seen again, and by whom: index and status. Forgotten when they are in the books.
    again: Vec<[u32; 2]>,
    /// Those that are not over.
    live: u64,
}

impl<'t, K: Key> Gathered<'t, K> {
    fn new(table: &'t FlowTable<K>) -> Self {
        let removal = Removal::new(table);
        Self { table, found: Vec::new(), removal, unplaced: Vec::new(), again: Vec::new(), live: 0 }
    }

    /// Directions that are asked at once.
    const MANY: usize = 4096;

    fn have_placed(&mut self, Seen { key, entry, birth, .. }: &Seen<K>) -> Result<(), DatapathError> {
        if is_to_be_placed(key.protocol(), birth, entry) {
            self.unplaced.push(*key);
        }
        if self.unplaced.len() < Self::MANY { Ok(()) } else { self.place() }
    }

    fn place(&mut self) -> Result<(), DatapathError> {
        self.table.place(&self.unplaced)?;
        self.unplaced.clear();
        Ok(())
    }
}

impl Walk<'_> {
    /// Judges and counts one table; returns its connections.
    fn table<K: Key>(&mut self, table: &FlowTable<K>) -> Result<u64, DatapathError> {
        let mut gathered = Gathered::new(table);
        let mut dying = Vec::new();
        table.visit_all(|seen| {
            let Seen { tenancy, key, entry, .. } = seen;
            if *tenancy == Tenancy::Dying {
                dying.push(seen.index);
                return Ok(());
            }
            self.logger.observe(table, seen);
            gathered.have_placed(seen)?;
            self.note_again(&mut gathered, seen)?;
            let is_over = self.judge.is_over(key.protocol(), entry);
            if entry.status.load() & status::ORIGINATOR == 0 {
                // It goes with its originator's. Alone, it is a rest of something interrupted; that can wait, because to
                // ask costs more than all else about an entry.
                let is_asked = (seen.index ^ self.census.passes).is_multiple_of(ALONE_ASKED);
                let is_alone = is_asked && is_over && table.read(&key.partner(entry)).is_none();
                return if is_alone { gathered.removal.add_alone(key) } else { Ok(()) };
            }
            if is_over {
                gathered.found.push(seen.clone());
                return if gathered.found.len() < JUDGED_AT_ONCE { Ok(()) } else { self.judge_idle(&mut gathered) };
            }
            gathered.live += 1;
            self.count(seen);
            Ok(())
        })?;
        self.judge_idle(&mut gathered)?;
        gathered.removal.finish()?;
        gathered.place()?;
        self.forget_again(&mut gathered)?;
        let live = gathered.live;
        self.bury(table, &dying)?;
        Ok(live)
    }

    /// What came again is in the books once, and what comes again after this look is the next one's.
    fn note_again<K: Key>(&mut self, gathered: &mut Gathered<'_, K>, seen: &Seen<K>) -> Result<(), DatapathError> {
        let bits = seen.entry.status.load();
        if bits & status::AGAIN != 0 {
            gathered.again.push([seen.index, bits]);
        }
        if gathered.again.len() < JUDGED_AT_ONCE { Ok(()) } else { self.forget_again(gathered) }
    }

    /// The books first: a controller that is killed in between has a flag in two windows, and in the other order it would be lost.
    fn forget_again<K: Key>(&mut self, gathered: &mut Gathered<'_, K>) -> Result<(), DatapathError> {
        if !gathered.again.is_empty() {
            self.logger.write();
            gathered.table.forget_again(&gathered.again)?;
            gathered.again.clear();
        }
        Ok(())
    }

    /// Removes those whose other direction is idle as well.
    fn judge_idle<K: Key>(&mut self, gathered: &mut Gathered<'_, K>) -> Result<(), DatapathError> {
        let partners: Vec<_> = gathered.found.iter().map(|seen| seen.key.partner(&seen.entry)).collect();
        let (removal, mut failed) = (&mut gathered.removal, Ok(()));
        gathered.table.read_many(&partners, |at, answer| {
            let seen = &gathered.found[at];
            if answer.is_none_or(|answer| self.judge.is_over(seen.key.protocol(), answer)) {
                self.census.expired += 1;
                // Until the next pass frees it, it takes room.
                self.load.count(&seen.key, seen.entry.status.load() & status::REPLIED != 0);
                let removed = removal.add(&seen.key, &seen.entry);
                failed = std::mem::replace(&mut failed, Ok(())).and(removed);
            } else {
                gathered.live += 1;
                self.count(seen);
            }
        })?;
        gathered.found.clear();
        failed
    }

    /// Frees the slots of dying entries. After the grace period their counters are final.
    fn bury<K: Key>(&mut self, table: &FlowTable<K>, dying: &[u32]) -> Result<(), DatapathError> {
        if dying.is_empty() {
            return Ok(());
        }
        wait_for_programs();
        for some in dying.chunks(FREED_AT_ONCE) {
            table.visit_at(some, |seen| self.logger.end(table, seen))?;
            // Before somebody else can have the slots.
            self.logger.write();
            table.vacate(some)?;
        }
        Ok(())
    }

    fn count<K: Key>(&mut self, Seen { key, entry, birth, .. }: &Seen<K>) {
        let bits = entry.status.load();
        let state = State::of(key.protocol(), bits);
        self.load.count(key, bits & status::REPLIED != 0);
        *self.census.states.entry((key.protocol(), state)).or_default() += 1;
        let clock = self.judge.clock;
        self.new += u64::from(clock.since(birth.since.load()) < self.since);
        if clock.since(entry.last_seen.load()) <= self.judge.ticks(IN_USE) {
            let NextHop { ifindex, mac } = NextHop::unpack(entry.next_hop.load());
            self.census.next_hops.insert((ifindex, mac));
        }
        if bits & status::SOURCE_NAT != 0
            && let (IpAddr::V4(address), port) = {
                let end = key.translated(entry).0;
                (end.ip(), end.port())
            }
        {
            self.note_port(address, port);
        }
    }

    fn note_port(&mut self, address: Ipv4Addr, port: u16) {
        let at = self.ports.iter().position(|(other, _)| *other == address).unwrap_or_else(|| {
            self.ports.push((address, PortBits(Box::new([0; 1024]), 0)));
            self.ports.len() - 1
        });
        let PortBits(bits, flows) = &mut self.ports[at].1;
        bits[usize::from(port / 64)] |= 1 << (port % 64);
        *flows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(pressure: bool) -> Judge {
        Judge { clock: Clock { now: 1000, per_second: 100 }, timeouts: Timeouts::default(), pressure, sources: false }
    }

    #[test]
    fn pressure_shortens_what_is_no_connection_yet_and_nothing_else() {
        let (calm, hard) = (judge(false), judge(true));
        let established = status::REPLIED | status::ESTABLISHED;
        assert_eq!(calm.limit(6, established), hard.limit(6, established));
        assert_eq!((calm.limit(6, 0), hard.limit(6, 0)), (24_000, 500));
        assert_eq!(hard.limit(6, established | status::RESET), 200);
        assert_eq!(hard.limit(17, status::REPLIED), calm.limit(17, status::REPLIED));
    }

    #[test]
    fn ports_are_counted_once() {
        let judge = judge(false);
        let (directory, mut logger) = super::super::log::tests::logger();
        let (logger, census) = (&mut logger, Census::default());
        let mut walk =
            Walk { judge: &judge, logger, since: 0, new: 0, census, ports: Vec::new(), load: Load::default() };
        for port in [1024, 1024, 65_535] {
            walk.note_port(Ipv4Addr::LOCALHOST, port);
        }
        assert_eq!(walk.ports[0].1.count(), PortUse { flows: 3, ports: 2 });
        drop(directory);
    }
}
