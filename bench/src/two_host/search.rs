//! Trials, and the search for the highest rate at which a share of frames gets lost.
//!
//! A rate passes when one of two trials of it passes: clouds drop a packet now and then for reasons of their own (the idea
//! of MLRsearch, without its bookkeeping).

use super::control::{Control, Reflected};
use super::host::Host;
use super::{Generate, Load};
use crate::lab;
use crate::report::{Row, Table};
use anyhow::{Result, ensure};
use forwarder_ebpf::abi::{LoadConfig, LoadStation, dwell_bucket_ns};
use std::collections::BTreeMap;
use std::time::Duration;

/// Shares that may be lost, and what the rate is then called.
const GOALS: [(f64, &str); 2] = [(0.0, "NDR"), (0.005, "PDR")];
/// A search ends when what lies between is this share of the highest rate.
const WIDTH: f64 = 0.005;
/// Loads of latency trials, percent of the PDR.
const LOADS: [u32; 3] = [10, 50, 90];
/// Percentiles shown, with their names.
const PERCENTILES: [(f64, &str); 5] = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")];
/// From the start of a generation to where it is looked at.
const RUN_UP: Duration = Duration::from_millis(150);
/// One frame in so many carries the time.
const STAMP_ONE_IN: u32 = 16;

/// What a trial takes beside its window: run-up, start, stop, settling, and the words between both ends.
const AROUND: Duration = Duration::from_millis(300);

/// How long all trials take at the most, about: when no rate passes at once and each that fails is tried again.
pub(super) fn most_expected(load: &Load) -> Duration {
    let steps = (1.0 / WIDTH).log2().ceil() as u32;
    let trials = 2 + GOALS.len() as u32 * 2 * (1 + steps) + LOADS.len() as u32;
    (Duration::from_millis(load.trial_ms) + AROUND) * trials
}

/// Both ends, as the generator has them.
pub(super) struct Pair<'a> {
    options: &'a Generate,
    host: Host,
    control: Control,
    station: LoadStation,
    pdr: f64,
    /// Counters that moved in trials of the running search that lost too much.
    held_back: Vec<String>,
}

/// What a trial found.
struct Trial {
    /// Frames that came back per second.
    pps: f64,
    sent: u64,
    returned: u64,
    reflected: Reflected,
    wrong: u64,
    throttled: Vec<String>,
}

impl Trial {
    fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.returned) as f64 / (self.sent as f64).max(1.0)
    }

    /// Whether the reflector's driver counts what EC2 held back.
    fn has_allowances(&self) -> bool {
        !self.reflected.allowances.is_empty()
    }
}

impl<'a> Pair<'a> {
    pub(super) fn connect(options: &'a Generate) -> Result<Self> {
        let control = Control::connect(options.control)?;
        let host = Host::generator(&options.interface)?;
        let station = host.station(options.server)?;
        Ok(Self { options, host, control, station, pdr: 0.0, held_back: Vec::new() })
    }

    /// Highest rate, and the highest with no more than each of the goals' losses.
    pub(super) fn measure_rates(&mut self, path: &str, table: &mut Table) -> Result<()> {
        // Lets everything between learn the flows.
        self.trial(0.0)?;
        let most = self.trial(0.0)?;
        ensure!(most.returned > 0, "nothing comes back: {} sent, {} reflected", most.sent, most.reflected.packets);
        let row = rate_row(table, path, "MRR", &most);
        row.note(format!("{:.3} % lost at the generator's full speed", 100.0 * most.loss()));
        for (end, has) in [("generator", !self.host.allowances().is_empty()), ("reflector", most.has_allowances())] {
            if !has {
                row.note(format!("the {end}'s driver has no allowance counters: throttling by EC2 would not show"));
            }
        }
        for (goal, name) in GOALS {
            let (rate, trial) = self.search(goal, &most)?;
            let row = rate_row(table, path, name, &trial);
            row.rounds = vec![rate];
            if !self.held_back.is_empty() {
                row.note(format!("what lost more was throttled by EC2: {}", self.held_back.join(", ")));
            }
            self.pdr = rate;
        }
        Ok(())
    }

    /// Round trips at shares of the PDR, from the time stamps of the load itself.
    pub(super) fn measure_latency(&mut self, path: &str, table: &mut Table) -> Result<()> {
        for load in LOADS {
            let trial = self.trial(self.pdr * f64::from(load) / 100.0)?;
            let transit = self.host.load.transit()?;
            for (share, name) in PERCENTILES {
                let load = format!("{load} % of PDR");
                let row = table.row("us", [("device", path), ("load", load.as_str()), ("figure", name)]);
                row.push(percentile_ns(&transit, share) as f64 / 1e3);
                note(row, &trial);
            }
        }
        Ok(())
    }

    /// The highest rate that loses no more than `goal`, and the trial that showed it.
    fn search(&mut self, goal: f64, most: &Trial) -> Result<(f64, Trial)> {
        self.held_back.clear();
        let top = most.pps.max(1.0);
        let (mut good, mut bad) = (0.0, top);
        let mut shown = self.passes(top, goal)?;
        if let Some(trial) = shown {
            return Ok((top, trial));
        }
        while bad - good > WIDTH * top {
            let rate = f64::midpoint(good, bad);
            match self.passes(rate, goal)? {
                Some(trial) => (good, shown) = (rate, Some(trial)),
                None => bad = rate,
            }
        }
        match shown {
            Some(trial) => Ok((good, trial)),
            None => anyhow::bail!("every rate loses more than {} %", goal * 100.0),
        }
    }

    /// The trial of a rate that passes, if one of two does.
    fn passes(&mut self, rate: f64, goal: f64) -> Result<Option<Trial>> {
        let mut throttled = Vec::new();
        for _ in 0..2 {
            let trial = self.trial(rate)?;
            eprintln!("two-host: {:.3} Mpps offered, {:.4} % lost", rate / 1e6, 100.0 * trial.loss());
            if trial.loss() <= goal {
                return Ok(Some(trial));
            }
            throttled.extend(trial.throttled);
        }
        // The last rate that fails is the lowest, which is what the search ends at.
        self.held_back = throttled;
        Ok(None)
    }

    /// Offers a rate for the length of a trial; 0: as much as the generator can.
    fn trial(&mut self, rate: f64) -> Result<Trial> {
        let config = self.config(rate);
        self.control.configure(&config)?;
        self.host.load.configure(&config)?;
        let before = (self.host.allowances(), self.control.count()?.allowances);
        let (load, options) = (&self.host.load, &self.options.load);
        let window = load.window(options.cpu, options.bytes, RUN_UP, Duration::from_millis(options.trial_ms))?;
        std::thread::sleep(Duration::from_millis(50));
        let counts = load.counts()?;
        let reflected = self.control.count()?;
        let mut throttled = moved("generator", &before.0, &self.host.allowances());
        throttled.extend(moved("reflector", &before.1, &reflected.allowances));
        Ok(Trial {
            pps: window.pps,
            sent: counts.sent[0],
            returned: counts.arrived[1].packets,
            wrong: reflected.wrong + counts.arrived[1].wrong,
            reflected,
            throttled,
        })
    }

    fn config(&self, rate: f64) -> LoadConfig {
        let options = self.options;
        let flows = options.load.flows;
        LoadConfig {
            flows,
            step: lab::step(flows),
            family: 4,
            directions: 1,
            one_host: 1,
            translated: u32::from(options.public.is_some()),
            stamp_mask: STAMP_ONE_IN - 1,
            interval_ns: if rate > 0.0 { (1e9 / rate) as u32 } else { 0 },
            clients: options.client.octets(),
            servers: options.server.octets(),
            public: options.public.unwrap_or(options.client).octets(),
            stations: [self.station; 2],
            ..LoadConfig::default()
        }
    }
}

fn rate_row<'t>(table: &'t mut Table, path: &str, name: &str, trial: &Trial) -> &'t mut Row {
    let row = table.row("pps", [("device", path), ("load", "highest rate"), ("figure", name)]);
    row.push(trial.pps);
    note(row, trial);
    row
}

/// What a reader must know of a trial.
fn note(row: &mut Row, trial: &Trial) {
    if trial.wrong > 0 {
        row.note(format!("{} frames with another address, port or order of the path than expected", trial.wrong));
    }
    if trial.reflected.late > 0 {
        row.note(format!("{} frames overtaken on the way there", trial.reflected.late));
    }
    if !trial.throttled.is_empty() {
        row.note(format!("throttled by EC2: {}", trial.throttled.join(", ")));
    }
}

/// Allowance counters that moved.
fn moved(end: &str, before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let count = |name: &String| before.get(name).copied().unwrap_or(0);
    let moved = after.iter().filter(|(name, now)| **now > count(name));
    moved.map(|(name, now)| format!("{name} +{} at the {end}", now - count(name))).collect()
}

/// The time that a share of the frames did not exceed, ns, from a histogram of `abi::dwell_bucket_ns`.
fn percentile_ns(histogram: &[u64], share: f64) -> u64 {
    let wanted = (histogram.iter().sum::<u64>() as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (bucket, count) in (0..).zip(histogram) {
        seen += count;
        if seen >= wanted {
            return dwell_bucket_ns(bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_ebpf::abi::{DWELL_BUCKETS, dwell_bucket};

    #[test]
    fn percentiles_come_from_the_buckets() {
        let mut histogram = vec![0; DWELL_BUCKETS as usize];
        histogram[dwell_bucket(1_000) as usize] = 99;
        histogram[dwell_bucket(50_000) as usize] = 1;
        let within = |ns: u64, of: u64| ns.abs_diff(of) * 20 < of;
        assert!(within(percentile_ns(&histogram, 0.5), 1_000) && within(percentile_ns(&histogram, 0.99), 1_000));
        assert!(within(percentile_ns(&histogram, 1.0), 50_000));
        assert_eq!(percentile_ns(&[0; 4], 0.5), 0);
    }

    #[test]
    fn the_longest_search_is_told_beforehand() {
        let load = |trial_ms| Load { flows: 1, bytes: 60, trial_ms, cpu: 0 };
        // Two at full speed, twice two for the highest rate and each of eight halvings, three for latency.
        assert_eq!(most_expected(&load(700)), Duration::from_secs(2 + 2 * 2 * 9 + 3));
    }

    #[test]
    fn allowances_that_moved_are_told() {
        let before =
            BTreeMap::from([("pps_allowance_exceeded".to_owned(), 3), ("bw_in_allowance_exceeded".to_owned(), 1)]);
        let after =
            BTreeMap::from([("pps_allowance_exceeded".to_owned(), 5), ("bw_in_allowance_exceeded".to_owned(), 1)]);
        assert_eq!(moved("reflector", &before, &after), ["pps_allowance_exceeded +2 at the reflector"]);
    }
}
