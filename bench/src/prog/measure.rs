//! Nanoseconds per packet, out of `BPF_PROG_TEST_RUN`, with every packet of another flow.
//!
//! The kernel takes the time around all repeats of a call and returns the mean in whole nanoseconds. A call with one repeat
//! thus contains two readings of the clock and a program whose code and data the system call has just pushed out of the
//! nearest caches: 100 to 200 ns more than the packet costs, as much as what is to be measured. With many repeats that
//! vanishes, but then all of them see one buffer, and one flow: the hottest that can be. Hence two ways.
//!
//! - **Chain**, for all that is translated: the entries rewrite a packet to the tuple of the next connection in a random
//!   cycle (see [`super::flows`]), and send it to our own link-layer address. What a repeat leaves in the buffer is the
//!   next one's packet, of another flow. A frame goes as many hops as its TTL lets it; the program is the real one, and the
//!   last frame proves the way it took. One packet waits for the one before, so no two table lookups overlap: as in life,
//!   where hundreds of instructions of driver lie between them.
//!   Tables that fit the caches are visited once before.
//! - **Calls**, for the rest: one packet a call, thousands of calls, the slowest hundredth dropped (interrupts). What a call
//!   adds is told by a packet of one established flow in every second call: it goes off, and what the same packet takes in
//!   repeats is put back. In every second call, because neighbours on the machine come and go. How far the two ways differ
//!   on the established IPv4 path, where both work, stands with the figures: some 10 ns on an idle machine with a small
//!   table. With a million connections calls find page tables cold, too, and tell a quarter more than the chain does.
//!
//! From both goes the harness: the time of a repeat around a frame that the program lets go at once.
//!
//! Every batch is checked: each packet has to be counted with the outcome that its path has.

use super::bed::Bed;
use super::flows::{key4, key6};
use super::path::{Path, TTL, newcomer6};
use anyhow::{Context, Result, bail, ensure};
use forwarder::datapath::{FlowTable, Key, wait_for_programs};
use forwarder_ebpf::abi::{MAX_IFACES, OUTCOMES, Side, counter_index};
use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_kit::packet::{Summary, describe, protocol, verify_checksums};
use std::collections::BTreeMap;

/// Hops of one frame: the last one still has a TTL that is enough.
pub const HOPS: u32 = TTL as u32 - 5;
/// Tables of at most so many times `HOPS` connections are visited once before they are measured. Larger ones are larger than
/// any cache, so that a visit would leave nothing.
const WARMED: usize = 512;
/// The share of calls, the slowest, that does not count: one in so many.
const DROPPED: usize = 100;

/// How much is run in a round.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Calls of the chain on each path, at most; fewer where the table is visited once before that.
    pub chains: usize,
    /// Calls of one packet on each path.
    pub calls: usize,
    /// Flows begun.
    pub begun: usize,
}

/// Measures on one bed. It remembers where in the cycle it is, so that rounds do not meet what the last one has warmed.
#[derive(Debug)]
pub struct Meter<'b> {
    bed: &'b Bed,
    place: usize,
    fresh: u32,
}

impl<'b> Meter<'b> {
    /// Begins at the start of the cycle.
    pub fn new(bed: &'b Bed) -> Self {
        Self { bed, place: 0, fresh: 0 }
    }

    /// Time of a repeat around a program that does next to nothing, ns: a frame of an interface that is not served.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn harness_ns(&self) -> Result<f64> {
        let frame = Path::Udp4Out.frame(0);
        let once = || Ok(whole(self.bed.datapath.run_frame_repeatedly(self.bed.unserved, &frame, HOPS)?.duration));
        middle((0..200).map(|_| once()).collect::<Result<_>>()?)
    }

    /// Time of one packet of a path by the chain, harness included, ns.
    ///
    /// # Errors
    /// When the kernel refuses, or packets do not go the way they should.
    pub fn chain_ns(&mut self, path: Path, amount: Amount) -> Result<f64> {
        let once = (self.bed.cycle.length() / HOPS as usize).max(1);
        let (warming, calls) = (if once <= WARMED { once } else { 0 }, once.clamp(amount.chains / 10, amount.chains));
        let before = self.counted(path)?;
        let mut times = Vec::with_capacity(warming + calls);
        for _ in 0..warming + calls {
            let frame = path.frame(self.bed.cycle.at(self.place));
            self.place += HOPS as usize;
            let ran = self.bed.datapath.run_frame_repeatedly(path.ingress(self.bed), &frame, HOPS)?;
            check_arrival(path, self.bed.cycle.at(self.place), &ran.frame)?;
            times.push(whole(ran.duration));
        }
        self.check_counted(path, before, times.len() * HOPS as usize, 0)?;
        middle(times.split_off(warming))
    }

    /// Time of one packet of a path by calls, harness included, ns.
    ///
    /// # Errors
    /// When the kernel refuses, or packets do not go the way they should.
    pub fn calls_ns(&mut self, path: Path, amount: Amount) -> Result<f64> {
        let begins = matches!(path, Path::New4 | Path::New6);
        self.warm(path)?;
        let numbers: Vec<_> =
            (0..if begins { amount.begun } else { amount.calls }).map(|_| self.number(path)).collect();
        let frames: Vec<_> = numbers.iter().map(|number| path.frame(*number)).collect();
        let (known, known_frame) = self.known_flow(path);
        let (before, datapath) = (self.counted(path)?, &self.bed.datapath);
        let (mut times, mut known_times) = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
        for frame in &frames {
            times.push(datapath.run_frame(path.ingress(self.bed), frame)?.duration.as_nanos() as f64);
            known_times.push(datapath.run_frame(known, &known_frame)?.duration.as_nanos() as f64);
        }
        self.check_counted(path, before, frames.len(), frames.len())?;
        if begins {
            self.forget(path, &numbers)?;
        }
        let repeated = (0..100).map(|_| Ok(whole(datapath.run_frame_repeatedly(known, &known_frame, HOPS)?.duration)));
        let repeated = middle(repeated.collect::<Result<_>>()?)?;
        Ok(trimmed_mean(times)? - trimmed_mean(known_times)? + repeated)
    }

    /// A packet of the family whose every repeat is of the same flow: by the connection that leads to itself, see
    /// `flows::fill4`; without translation every one does.
    fn known_flow(&self, path: Path) -> (u32, Vec<u8>) {
        let (path, number) = if path.is_ipv6() { (Path::Udp6, 0) } else { (Path::Udp4Out, self.bed.connections()) };
        (path.ingress(self.bed), path.frame(number))
    }

    /// Visits the table once: rounds of other, larger tables have pushed it out of the caches.
    fn warm(&self, path: Path) -> Result<()> {
        if self.bed.cycle.length() > WARMED * HOPS as usize {
            return Ok(());
        }
        // Only what a path looks up is worth visiting: the answers' entries for errors, the originators' for the rest.
        let visited = match path {
            path if path.is_ipv6() => Path::Udp6,
            Path::Related => Path::Udp4Back,
            _ => Path::Udp4Out,
        };
        let (step, repeat) = if visited == Path::Udp6 { (1, 1) } else { (HOPS as usize, HOPS) };
        for place in (0..self.bed.cycle.length()).step_by(step) {
            let frame = visited.frame(self.bed.cycle.at(place));
            self.bed.datapath.run_frame_repeatedly(visited.ingress(self.bed), &frame, repeat)?;
        }
        Ok(())
    }

    /// The number of the next frame: a connection of the table, or for flows that are not in it simply the next.
    fn number(&mut self, path: Path) -> u32 {
        if matches!(path, Path::New4 | Path::New6) {
            self.fresh += 1;
            return self.fresh;
        }
        self.place += 1;
        self.bed.cycle.at(self.place)
    }

    /// Removes a flow that was begun for measuring, so that the table stays as full as it says.
    fn forget(&self, path: Path, numbers: &[u32]) -> Result<()> {
        let datapath = &self.bed.datapath;
        if path == Path::New4 {
            remove(
                &datapath.flows4,
                numbers.iter().map(|number| key4(&path.tuple4(*number), protocol::UDP, Side::Inside)),
            )
        } else {
            remove(&datapath.flows6, numbers.iter().map(|number| key6(&newcomer6(*number), Side::Inside)))
        }
    }

    /// Packets of each outcome, of those that entered where the path's do.
    fn counted(&self, path: Path) -> Result<Vec<u64>> {
        let (slot, _) = path.counted_as();
        let counters = self.bed.datapath.read_counters(MAX_IFACES)?;
        let first = counter_index(slot, 0) as usize;
        Ok(counters.iter().skip(first).take(OUTCOMES as usize).map(|counter| counter.packets).collect())
    }

    /// `packets` have to be counted as the path's are, and `known` as those of established flows from inside.
    fn check_counted(&self, path: Path, before: Vec<u64>, packets: usize, known: usize) -> Result<()> {
        let (slot, expected) = path.counted_as();
        let (known_slot, known_outcome) = Path::Udp4Out.counted_as();
        let mut wanted = BTreeMap::from([(expected, packets as u64)]);
        if slot == known_slot && known > 0 {
            *wanted.entry(known_outcome).or_default() += known as u64;
        }
        let after =
            (0..).zip(self.counted(path)?).zip(before).map(|((outcome, after), before)| (outcome, after - before));
        let found: BTreeMap<u32, u64> = after.filter(|(_, packets)| *packets > 0).collect();
        if found == wanted {
            return Ok(());
        }
        let say = |all: &BTreeMap<u32, u64>| {
            let each = all.iter().map(|(outcome, packets)| format!("{packets} {}", outcome_name(*outcome)));
            each.collect::<Vec<_>>().join(", ")
        };
        bail!("{}: of the packets should have been {}, but were {}", path.name(), say(&wanted), say(&found))
    }
}

/// The frame has to be the packet of the connection that so many hops lead to, whole and with its TTL used.
fn check_arrival(path: Path, number: u32, frame: &[u8]) -> Result<()> {
    let expected = Summary::of(&path.frame(number));
    let arrived = Summary::of(frame);
    let as_expected = expected.zip(arrived).is_some_and(|(expected, arrived)| {
        (arrived.source, arrived.destination, arrived.ports) == (expected.source, expected.destination, expected.ports)
            && u32::from(arrived.ttl) + HOPS == u32::from(expected.ttl)
    });
    ensure!(as_expected, "{}: the chain broke: {}", path.name(), describe(frame));
    verify_checksums(frame).map_err(|wrong| anyhow::anyhow!("{}: {wrong}", path.name()))
}

fn outcome_name(outcome: u32) -> String {
    let pass = Pass::ALL.iter().find(|why| why.outcome() == outcome).map(|why| format!("passed ({})", why.name()));
    let drop = || Drop::ALL.iter().find(|why| why.outcome() == outcome).map(|why| format!("dropped ({})", why.name()));
    pass.or_else(drop).unwrap_or_else(|| format!("forwarded to slot {outcome}"))
}

/// The kernel cuts the mean of a call to whole nanoseconds; on average half of one is lost.
fn whole(duration: std::time::Duration) -> f64 {
    duration.as_nanos() as f64 + 0.5
}

/// The middle one.
fn middle(mut times: Vec<f64>) -> Result<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("nothing was measured")
}

/// The mean of all but the slowest hundredth.
fn trimmed_mean(mut times: Vec<f64>) -> Result<f64> {
    times.sort_by(f64::total_cmp);
    times.truncate(times.len() - times.len() / DROPPED);
    ensure!(!times.is_empty(), "nothing was measured");
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}

/// Removes both entries of the originators' keys, and frees their slots.
fn remove<K: Key>(table: &FlowTable<K>, keys: impl Iterator<Item = K>) -> Result<()> {
    let mut both = Vec::new();
    for key in keys {
        let entry = table.read(&key).context("a flow that began is not there")?;
        both.extend([key, key.partner(&entry)]);
    }
    table.remove(&both)?;
    wait_for_programs();
    let freed = table.vacate(&table.dying()?)? as usize;
    ensure!(freed == both.len(), "{freed} of {} slots were freed", both.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_hundredth_does_not_count_in_the_mean() {
        let mut times = vec![10.0; 198];
        times.extend([1e6, 1e6]);
        assert_eq!(trimmed_mean(times).unwrap(), 10.0);
        assert_eq!(trimmed_mean(vec![1.0, 3.0]).unwrap(), 2.0);
        assert!(trimmed_mean(Vec::new()).is_err());
    }

    #[test]
    fn one_odd_call_does_not_move_the_middle() {
        assert_eq!(middle(vec![70.5, 900.5, 71.5]).unwrap(), 71.5);
        assert!(middle(Vec::new()).is_err());
    }

    #[test]
    fn a_broken_chain_is_seen() {
        let mut frame = Path::Udp4Out.frame(3);
        assert!(check_arrival(Path::Udp4Out, 3, &frame).is_err(), "no hop was made");
        frame[22] -= HOPS as u8;
        assert!(check_arrival(Path::Udp4Out, 3, &frame).is_err(), "the header's sum is wrong");
        assert!(check_arrival(Path::Udp4Out, 4, &frame).is_err(), "of another connection");
    }
}
