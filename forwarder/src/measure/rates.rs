//! A minute of counter readings, one a second: totals and rates of everything that is counted.

use super::latency::ProcessingTime;
use crate::datapath::{Datapath, DatapathError};
use forwarder_ebpf::abi::{Counter, counter_index};
use forwarder_ebpf::verdict::{Drop, Pass};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Readings kept: a minute's, and the one before.
const READINGS: usize = 61;

/// Frames and their bytes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}

/// Mean rates over a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Packets per second.
    pub pps: f64,
    /// Bits per second.
    pub bps: f64,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames since the start.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Over the last second.
    pub last_second: Rate,
    /// Over the last minute, or since the start if that is less.
    pub last_minute: Rate,
}

/// One reading of all counters.
#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    counters: Vec<Counter>,
    dwell: Vec<u64>,
}

/// The readings: one a second for the rates, and the latest for the totals.
#[derive(Debug, Default)]
pub struct Meter {
    readings: VecDeque<Reading>,
    latest: Option<Reading>,
}

impl Count {
    fn add(&mut self, counter: &Counter) {
        self.packets += counter.packets;
        self.bytes += counter.bytes;
    }

    fn since(self, earlier: Self) -> Self {
        Self { packets: self.packets.saturating_sub(earlier.packets), bytes: self.bytes.saturating_sub(earlier.bytes) }
    }

    fn per_second(self, time: Duration) -> Rate {
        let seconds = time.as_secs_f64().max(1e-6);
        Rate { pps: self.packets as f64 / seconds, bps: 8.0 * self.bytes as f64 / seconds }
    }
}

impl Traffic {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let rate = |one: Rate, other: Rate| Rate { pps: one.pps + other.pps, bps: one.bps + other.bps };
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            last_second: rate(self.last_second, other.last_second),
            last_minute: rate(self.last_minute, other.last_minute),
        }
    }
}

impl Meter {
    /// Reads the counters of the first `slots` slots, so that totals are of this moment.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn refresh(&mut self, datapath: &Datapath, slots: u32) -> Result<(), DatapathError> {
        let (counters, dwell) = (datapath.read_counters(slots)?, datapath.read_dwell()?);
        self.latest = Some(Reading { at: Instant::now(), counters, dwell });
        Ok(())
    }

    /// The same, and keeps the reading for the rates; to be called once a second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tick(&mut self, datapath: &Datapath, slots: u32) -> Result<(), DatapathError> {
        self.refresh(datapath, slots)?;
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.extend(self.latest.clone());
        Ok(())
    }

    /// What came in by a slot: all outcomes but `held`, whose frames are counted anew when they are sent again.
    pub fn traffic_in(&self, slot: u8) -> Traffic {
        self.traffic(|counters| {
            let first = counter_index(slot, 0) as usize;
            let held = counter_index(slot, Pass::Held.outcome()) as usize;
            let mut sum = Count::default();
            for (at, counter) in counters.iter().enumerate().skip(first).take(forwarder_ebpf::abi::OUTCOMES as usize) {
                if at != held {
                    sum.add(counter);
                }
            }
            sum
        })
    }

    /// What was forwarded out by a slot.
    pub fn traffic_out(&self, slot: u8) -> Traffic {
        self.traffic(|counters| {
            let mut sum = Count::default();
            for ingress in 0..slots_in(counters) {
                sum.add(at(counters, ingress, u32::from(slot)));
            }
            sum
        })
    }

    /// Drops of a slot by reason, those that happened.
    pub fn drops(&self, slot: u8) -> BTreeMap<Drop, Count> {
        self.by_reason(slot, Drop::ALL, Drop::outcome)
    }

    /// Frames of a slot that were left to the host, by reason, those that happened.
    pub fn passes(&self, slot: u8) -> BTreeMap<Pass, Count> {
        self.by_reason(slot, Pass::ALL, Pass::outcome)
    }

    /// Frames that found the flow table, or its share of unanswered flows, full, since the reading before the last.
    pub fn newly_refused(&self) -> u64 {
        let refused = |reading: &Reading| -> u64 {
            let counters = &reading.counters;
            let reasons = [Drop::TableFull, Drop::UnansweredLimit].map(Drop::outcome);
            let of = |slot| reasons.map(|reason| at(counters, slot, reason).packets).iter().sum::<u64>();
            (0..slots_in(counters)).map(of).sum()
        };
        match (self.readings.len().checked_sub(2).and_then(|at| self.readings.get(at)), self.readings.back()) {
            (Some(before), Some(last)) => refused(last).saturating_sub(refused(before)),
            _ => 0,
        }
    }

    /// Processing time over the last minute.
    pub fn processing_time(&self) -> ProcessingTime {
        let (Some(first), Some(last)) = (self.readings.front(), &self.latest) else {
            return ProcessingTime::default();
        };
        let minute: Vec<u64> =
            last.dwell.iter().zip(&first.dwell).map(|(last, first)| last - first.min(last)).collect();
        ProcessingTime::of(&minute)
    }

    fn traffic(&self, sum: impl Fn(&[Counter]) -> Count) -> Traffic {
        let Some(last) = &self.latest else { return Traffic::default() };
        let total = sum(&last.counters);
        let rate_since = |reading: Option<&Reading>| {
            reading.filter(|reading| reading.at < last.at).map_or(Rate::default(), |reading| {
                total.since(sum(&reading.counters)).per_second(last.at.duration_since(reading.at))
            })
        };
        let second = Duration::from_millis(900);
        let before =
            self.readings.iter().rev().find(|reading| reading.at + second <= last.at).or(self.readings.front());
        Traffic {
            packets: total.packets,
            bytes: total.bytes,
            last_second: rate_since(before),
            last_minute: rate_since(self.readings.front()),
        }
    }

    fn by_reason<R: Copy + Ord>(&self, slot: u8, all: &[R], outcome: impl Fn(R) -> u32) -> BTreeMap<R, Count> {
        let Some(last) = &self.latest else { return BTreeMap::new() };
        let count = |reason: &R| {
            let counter = at(&last.counters, slot, outcome(*reason));
            (*reason, Count { packets: counter.packets, bytes: counter.bytes })
        };
        all.iter().map(count).filter(|(_, count)| count.packets > 0).collect()
    }
}

fn slots_in(counters: &[Counter]) -> u8 {
    (counters.len() / forwarder_ebpf::abi::OUTCOMES as usize) as u8
}

fn at(counters: &[Counter], slot: u8, outcome: u32) -> &Counter {
    const NONE: Counter = Counter { packets: 0, bytes: 0 };
    counters.get(counter_index(slot, outcome) as usize).unwrap_or(&NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_ebpf::abi::OUTCOMES;

    /// Slot, outcome, packets.
    type Counts<'a> = &'a [(u8, u32, u64)];

    fn meter(readings: &[(u64, Counts<'_>)]) -> Meter {
        let begun = Instant::now();
        let reading = |(second, counts): &(u64, Counts<'_>)| {
            let mut counters = vec![Counter::default(); 2 * OUTCOMES as usize];
            for (slot, outcome, packets) in *counts {
                counters[counter_index(*slot, *outcome) as usize] = Counter { packets: *packets, bytes: 100 * packets };
            }
            Reading { at: begun + Duration::from_secs(*second), counters, dwell: Vec::new() }
        };
        let readings: VecDeque<_> = readings.iter().map(reading).collect();
        Meter { latest: readings.back().cloned(), readings }
    }

    #[test]
    fn rates_are_over_the_last_second_and_the_whole_time() {
        let meter = meter(&[(0, &[]), (1, &[(0, 1, 10)]), (2, &[(0, 1, 40)])]);
        let traffic = meter.traffic_in(0);
        assert_eq!((traffic.packets, traffic.bytes), (40, 4000));
        assert_eq!((traffic.last_second.pps, traffic.last_minute.pps), (30.0, 20.0));
        assert_eq!(traffic.last_minute.bps, 16_000.0);
        assert_eq!(meter.traffic_out(1), traffic);
        assert_eq!(meter.traffic_out(0).packets, 0);
    }

    #[test]
    fn a_held_frame_is_counted_when_it_is_sent_again() {
        let meter = meter(&[(0, &[(0, Pass::Held.outcome(), 3), (0, 1, 2)])]);
        assert_eq!(meter.traffic_in(0).packets, 2);
        assert_eq!(meter.passes(0)[&Pass::Held].packets, 3);
    }

    #[test]
    fn drops_are_by_reason_and_refusals_are_new_ones() {
        let full = Drop::TableFull.outcome();
        let meter = meter(&[(0, &[(1, full, 5)]), (1, &[(1, full, 9), (1, Drop::Policy.outcome(), 1)])]);
        assert_eq!(meter.newly_refused(), 4);
        let reasons: Vec<_> = meter.drops(1).into_iter().map(|(reason, count)| (reason, count.packets)).collect();
        assert_eq!(reasons, [(Drop::Policy, 1), (Drop::TableFull, 9)]);
    }
}
