//! A feed with clocks in hand, entries that send and destinations that remember: what is logged is what was sent.

use super::*;
use crate::flowlog::clock::tests::Hand;
use crate::flowlog::destination::Sink;
use crate::flowlog::progress::Progress;
use crate::record::{Direction, Filter, Interface, Record, Tuple};
use forwarder_ebpf::verdict::Drop;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// All windows that came, and statuses as words.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<(Vec<Window>, Vec<String>)>>);

impl Sink for Memory {
    fn take(&mut self, batch: &Batch, _: &Filter) -> io::Result<u64> {
        self.0.lock().expect("no test panics with it").0.extend_from_slice(&batch.windows);
        Ok(batch.windows.len() as u64)
    }

    fn status(&mut self, record: &Record<'_>, interface: u16, _: &Interfaces) -> io::Result<()> {
        let said = match record {
            Record::NoData(span) => format!("NODATA {interface} {}-{}", span.start, span.end),
            _ => format!("SKIPDATA {interface}"),
        };
        self.0.lock().expect("no test panics with it").1.push(said);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn poll(&mut self, _: bool) -> u64 {
        0
    }
}

/// A feed with one destination per interval, clocks in hand, and entries that send.
struct World {
    directory: tempfile::TempDir,
    hand: Hand,
    memories: Vec<Memory>,
    destinations: Vec<Arc<Destination>>,
    feed: Feed,
    names: Arc<Interfaces>,
    second: u32,
}

impl World {
    fn new(intervals: &[u64]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let hand = Hand::default();
        hand.set(0.0, 1000.0);
        let names = Arc::new(Interfaces { list: vec![Interface::default(); 3], rules: Arc::default() });
        let (memories, destinations, feed) = Self::open(directory.path(), &hand, intervals, false);
        Self { directory, hand, memories, destinations, feed, names, second: 0 }
    }

    fn open(
        directory: &Path,
        hand: &Hand,
        intervals: &[u64],
        adopted: bool,
    ) -> (Vec<Memory>, Vec<Arc<Destination>>, Feed) {
        let (mut memories, mut destinations) = (Vec::new(), Vec::new());
        for (at, _) in intervals.iter().enumerate() {
            let memory = Memory::default();
            let (progress, was_marked) = Progress::open(&directory.join(format!("progress-{at}"))).expect("a file");
            let destination = Destination::start(at.to_string(), Filter::All, Box::new(memory.clone()), progress);
            let destination = Arc::new(destination.expect("a thread"));
            if was_marked {
                destination.lost(1);
            }
            destinations.push(destination);
            memories.push(memory);
        }
        let by_interval = intervals.iter().map(|seconds| Duration::from_secs(*seconds)).zip(destinations.clone());
        let feed = Feed::open(directory, by_interval.collect(), Arc::default(), adopted).expect("files");
        (memories, destinations, feed.with_clocks(Clocks::new(Box::new(hand.clone()))))
    }

    /// Kills the controller and starts the next one.
    fn kill(&mut self, intervals: &[u64]) {
        let (memories, destinations, feed) = Self::open(self.directory.path(), &self.hand, intervals, true);
        // The old one's threads end with their queues, without a word to the ledger.
        (self.memories, self.destinations, self.feed) = (memories, destinations, feed);
    }

    /// A pass, a second after the last.
    fn pass(&mut self, work: impl FnOnce(&mut Feed)) {
        self.second += 1;
        let time = f64::from(self.second);
        let wall = self.hand.0.lock().expect("no test panics with it").1;
        self.hand.set(time, if wall < 1000.0 { wall + 1.0 } else { 1000.0 + time });
        self.feed.begin(100 * self.second, 100, self.names.clone(), false);
        work(&mut self.feed);
        self.feed.finish(true);
    }

    /// Windows and statuses of a destination, when it has ended.
    fn end(&mut self, at: usize) -> (Vec<Window>, Vec<String>) {
        self.destinations[at].finish(Duration::from_secs(5));
        self.memories[at].0.lock().expect("no test panics with it").clone()
    }

    fn counts(&self, packets: u64) -> Counts {
        Counts { packets, bytes: 50 * packets, made: 100, last: 100 * (self.second + 1), ..Counts::default() }
    }
}

fn describe(source_port: u16) -> impl Fn(&Moment) -> Window {
    move |_| {
        let tuple = Tuple { source_port, ..Tuple::default() };
        Window { arrived: tuple, left: tuple, ingress: 1, egress: 2, protocol: 17, ..Window::default() }
    }
}

#[test]
fn every_interval_sums_up_to_the_same() {
    let mut world = World::new(&[1, 5, 60]);
    for round in 1..=30_u64 {
        let counts = world.counts(3 * round);
        world.pass(|feed| {
            feed.observe(Family::V4, 9, &counts, describe(1));
            feed.observe(Family::V6, 9, &counts, describe(2));
        });
    }
    let last = world.counts(100);
    world.pass(|feed| {
        feed.end(Family::V4, 9, &last, describe(1));
        feed.end(Family::V6, 9, &last, describe(2));
    });
    for (at, least) in [(0, 28), (1, 5), (2, 1)] {
        let (windows, _) = world.end(at);
        let mut sums = BTreeMap::new();
        for window in &windows {
            *sums.entry(window.arrived.source_port).or_insert(0) += window.packets;
            assert!(window.first_ms <= window.last_ms, "{window:?}");
        }
        assert_eq!(sums, BTreeMap::from([(1, 100), (2, 100)]));
        assert!(windows.len() >= 2 * least, "{} windows", windows.len());
        assert_eq!(windows.iter().filter(|window| window.ends).count(), 2);
        assert_eq!(windows.iter().filter(|window| window.begins).count(), 2);
    }
}

#[test]
fn windows_end_with_round_times_and_silence_is_named() {
    let mut world = World::new(&[10]);
    for _ in 0..21 {
        world.pass(|_| {});
    }
    let (_, said) = world.end(0);
    assert_eq!(said, ["NODATA 1 1001-1010", "NODATA 2 1001-1010", "NODATA 1 1010-1020", "NODATA 2 1010-1020"]);
}

#[test]
fn a_clock_set_back_doubles_nothing() {
    let mut world = World::new(&[5]);
    for round in 1..=30 {
        if round == 13 {
            let steady = world.hand.0.lock().expect("no test panics with it").0;
            world.hand.set(steady, 500.0);
        }
        let counts = world.counts(round);
        world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    }
    let last = world.counts(40);
    world.pass(|feed| feed.end(Family::V4, 9, &last, describe(1)));
    let (windows, said) = world.end(0);
    assert_eq!(windows.iter().map(|window| window.packets).sum::<u64>(), 40);
    assert!(windows.len() >= 5 && windows.iter().any(|window| window.last_ms < 600_000), "{windows:?}");
    assert!(said.is_empty(), "nothing was lost and nobody silent: {said:?}");
}

#[test]
fn after_a_kill_nothing_is_double_and_what_was_on_its_way_is_declared() {
    let mut world = World::new(&[2]);
    for round in 1..=5 {
        let counts = world.counts(10 * round);
        world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    }
    let (before, _) = world.end(0);
    let logged: u64 = before.iter().map(|window| window.packets).sum();
    world.kill(&[2]);
    for round in 6..=9 {
        let counts = world.counts(10 * round);
        world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    }
    let last = world.counts(95);
    world.pass(|feed| feed.end(Family::V4, 9, &last, describe(1)));
    let (after, said) = world.end(0);
    assert_eq!(logged + after.iter().map(|window| window.packets).sum::<u64>(), 95);
    assert!(said.iter().all(|said| !said.starts_with("SKIPDATA")), "all had arrived: {said:?}");

    // And now in the middle: taken from the ledger, not yet written.
    world.feed.mark();
    world.kill(&[2]);
    for _ in 0..4 {
        world.pass(|_| {});
    }
    assert!(world.end(0).1.contains(&"SKIPDATA 1".to_owned()));
}

#[test]
fn an_interval_that_is_new_begins_with_what_comes_from_now_on() {
    let mut world = World::new(&[2]);
    let counts = world.counts(1000);
    world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    world.kill(&[3]);
    world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    let last = world.counts(1001);
    world.pass(|feed| feed.end(Family::V4, 9, &last, describe(1)));
    for _ in 0..4 {
        world.pass(|_| {});
    }
    let (windows, said) = world.end(0);
    assert_eq!(windows.iter().map(|window| window.packets).collect::<Vec<_>>(), [1]);
    assert!(said.iter().any(|said| said.starts_with("SKIPDATA")), "{said:?}");
}

#[test]
fn a_pass_that_failed_changes_nothing_yet() {
    let mut world = World::new(&[2, 600]);
    let timed = |seconds, at: usize| (Duration::from_secs(seconds), world.destinations[at].clone());
    let (before, after) = ([timed(2, 0), timed(600, 1)], vec![timed(3, 0)]);
    let counts = world.counts(1000);
    world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    let regroup = Regroup::open(world.directory.path(), &before, after, Vec::new()).expect("files");
    world.feed.change(regroup);
    // It ends before it comes to the entry.
    world.feed.begin(150, 100, world.names.clone(), false);
    world.feed.finish(false);
    assert!(world.feed.is_changing());
    let counts = world.counts(1001);
    world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    assert!(!world.feed.is_changing());
    let last = world.counts(1003);
    world.pass(|feed| feed.end(Family::V4, 9, &last, describe(1)));
    let packets = |(windows, _): (Vec<Window>, _)| windows.iter().map(|window| window.packets).collect::<Vec<_>>();
    assert_eq!(packets(world.end(1)), [1001], "the one that goes has all until then");
    assert_eq!(packets(world.end(0)), [1001, 2], "the other one the rest as well");
}

#[test]
fn refused_packets_are_added_up_over_the_window() {
    let mut world = World::new(&[4]);
    let refused = Refused { tuple: Tuple::default(), protocol: 6, ingress: 2, reason: Drop::Policy, rule: 0 };
    for second in 1..=8_u32 {
        let count =
            RefusedCount { packets: 2, bytes: 80, tcp_flags: 2, first: 100 * second - 50, last: 100 * second - 10 };
        world.pass(|feed| {
            feed.mark();
            feed.refuse(&refused, &count);
        });
    }
    world.pass(|feed| feed.refused_uncounted(7));
    for _ in 0..4 {
        world.pass(|_| {});
    }
    let (windows, said) = world.end(0);
    assert_eq!(windows.iter().map(|window| window.packets).sum::<u64>(), 16);
    assert!(windows.len() <= 3 && windows.iter().all(|window| window.refused == Some(Drop::Policy)), "{windows:?}");
    assert!(windows.iter().all(|window| window.tcp_flags == 2 && window.egress == NOWHERE));
    assert!(said.contains(&"SKIPDATA 2".to_owned()), "{said:?}");
    assert_eq!(world.destinations[0].status().lost, 7);
}

#[test]
fn watchers_see_what_comes_while_they_watch() {
    let mut world = World::new(&[60]);
    let counts = world.counts(10);
    world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    let mut seen = world.feed.watchers.watch(Filter::All).expect("room");
    for round in 2..=6 {
        let counts = world.counts(10 * round);
        world.pass(|feed| feed.observe(Family::V4, 9, &counts, describe(1)));
    }
    let mut packets = 0;
    while let Ok(event) = seen.try_recv() {
        let ingress = event.records.iter().filter(|(.., direction)| *direction == Direction::Ingress);
        packets += ingress.map(|(window, ..)| window.packets).sum::<u64>();
    }
    assert!((30..=40).contains(&packets), "{packets}");
    drop(seen);
    world.pass(|_| {});
    assert_eq!(world.feed.groups.len(), 1);
}
