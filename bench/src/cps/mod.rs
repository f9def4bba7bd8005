//! New flows: how many per second, how many connections of real sockets, and what happens when the table is full.
//!
//! After RFC 9693, phase 1: every packet is the first of its flow and meets a table that does not know it. When all arrive at
//! the generator's full speed, that is the rate; when not, the highest rate at which all do is searched, each trial on a new
//! table. A second pass over the same flows says what a packet of a known flow costs beside it.

mod tcp;

use crate::lab::{Device, Family, FlowTable, Lab};
use crate::load::Burst;
use crate::local::Size;
use crate::report::Table;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Where generator, device and sink run.
const CPU: usize = 0;
/// Steps of a search between a rate without loss and one with: to a sixteenth of what lies between.
const STEPS: u32 = 4;
/// More TCP connections than two sockets open in a second: none of the first ten seconds' is refused for want of room.
const MOST_PER_SECOND: u32 = 100_000;
/// To build a device and take it down, more or less.
const BUILD: Duration = Duration::from_secs(3);
/// For a new flow and, later, a known packet of it; kernel NAT takes longest.
const PER_FLOW: Duration = Duration::from_nanos(2500);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// New flows of a trial
    #[arg(long, default_value_t = 1_000_000)]
    pub flows: u32,
    /// Room in the table whose capacity is tried
    #[arg(long, default_value_t = 65_536)]
    pub capacity: u32,
    /// Length of a run of TCP connections, seconds; 0 leaves them out
    #[arg(long, default_value_t = 3)]
    pub tcp_s: u64,
    /// Rounds, each with every device
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Devices under test
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["forwarder", "nft"])]
    pub devices: Vec<Device>,
}

impl Options {
    /// A round with fewer flows.
    pub fn headline() -> Self {
        Self { flows: 100_000, capacity: 16_384, tcp_s: 1, rounds: 1, ..Self::thorough() }
    }

    /// Everything at its default.
    pub fn thorough() -> Self {
        Self { flows: 1_000_000, capacity: 65_536, tcp_s: 3, rounds: 3, devices: vec![Device::Forwarder, Device::Nft] }
    }

    /// How long it will take, about, when no device loses first packets.
    fn expected(&self) -> Duration {
        let each = 2 * BUILD + PER_FLOW * self.flows;
        let tcp = if self.tcp_s > 0 { BUILD + Duration::from_secs(self.tcp_s) } else { Duration::ZERO };
        (each + tcp) * self.devices.len() as u32 * self.rounds
    }
}

/// Measures in interleaved rounds.
///
/// # Errors
/// When something cannot be set up.
pub fn run(options: &Options) -> Result<Table> {
    eprintln!("cps: this takes about {} s, longer where a rate has to be searched", options.expected().as_secs());
    let mut table = Table::new("cps");
    for round in 1..=options.rounds {
        for device in &options.devices {
            eprintln!("cps: round {round} of {}: {}", options.rounds, device.name());
            let what = || format!("{}, round {round}", device.name());
            new_flows(*device, options.flows, &mut table).with_context(what)?;
            if options.tcp_s > 0 {
                connections(*device, Duration::from_secs(options.tcp_s), &mut table).with_context(what)?;
            }
            if device.has_flows() {
                capacity(*device, options.capacity, &mut table).with_context(what)?;
            }
        }
    }
    Ok(table)
}

fn new_flows(device: Device, flows: u32, table: &mut Table) -> Result<()> {
    let mut lab = Lab::new(device, FlowTable::roomy(flows))?;
    lab.load.configure(&lab.config(Family::V4, flows))?;
    let bytes = Size::Short.bytes(Family::V4);
    let first = lab.load.burst(CPU, bytes, flows)?;
    let known = lab.load.burst(CPU, bytes, flows)?;
    drop(lab);
    let row = table.row("1/s", [("device", device.name()), ("measure", "new flows")]);
    if first.lost == 0 {
        row.push(first.per_second);
    } else {
        eprintln!("cps: {} of {flows} first packets lost at full speed, searching", first.lost);
        row.note(format!("{} of {flows} lost at {:.0} per second: searched", first.lost, first.per_second));
        row.push(search(device, flows, first)?);
    }
    table.row("1/s", [("device", device.name()), ("measure", "packets of known flows")]).push(known.per_second);
    Ok(())
}

/// The highest rate at which every first packet arrives, below one at which not every one does.
fn search(device: Device, flows: u32, failed: Burst) -> Result<f64> {
    let (mut good, mut bad) = (0.0, failed.per_second);
    for _ in 0..STEPS {
        let rate = f64::midpoint(good, bad);
        if paced(device, flows, rate)? == 0 {
            good = rate;
        } else {
            bad = rate;
        }
    }
    Ok(good)
}

/// First packets lost at a rate, on a new table.
fn paced(device: Device, flows: u32, rate: f64) -> Result<u64> {
    let mut lab = Lab::new(device, FlowTable::roomy(flows))?;
    let mut config = lab.config(Family::V4, flows);
    config.interval_ns = (1e9 / rate) as u32;
    lab.load.configure(&config)?;
    let limit = Duration::from_secs_f64(5.0 + 2.0 * f64::from(flows) / rate);
    let (load, begun) = (&lab.load, Instant::now());
    load.while_generating(CPU, Size::Short.bytes(Family::V4), || {
        while load.counts()?.all_sent() < u64::from(flows) && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(30));
    let counts = lab.load.counts()?;
    Ok(counts.all_sent().saturating_sub(counts.all_arrived()))
}

fn connections(device: Device, length: Duration, table: &mut Table) -> Result<()> {
    let seconds = u32::try_from(length.as_secs()).unwrap_or(u32::MAX);
    let lab = Lab::new(device, FlowTable::roomy(MOST_PER_SECOND.saturating_mul(seconds).min(1 << 20)))?;
    let outcome = tcp::connect_and_close(&lab, length)?;
    let row = table.row("1/s", [("device", device.name()), ("measure", "TCP connections")]);
    row.push(outcome.per_second);
    if outcome.failed > 0 {
        row.note(format!("{} connections failed", outcome.failed));
    }
    Ok(())
}

/// Begins twice as many flows as fit, then answers all of them: who is answered is known.
fn capacity(device: Device, most: u32, table: &mut Table) -> Result<()> {
    let mut lab = Lab::new(device, FlowTable { flows: most, tight: true })?;
    let (begun, bytes) = (2 * most, Size::Short.bytes(Family::V4));
    let mut config = lab.config(Family::V4, begun);
    lab.load.configure(&config)?;
    let refused = lab.load.burst(CPU, bytes, begun)?.lost;
    config.directions = 2;
    lab.load.configure(&config)?;
    let alive = u64::from(begun) - lab.load.burst(CPU, bytes, begun)?.lost;
    let refused_row = table.row("flows", [("device", device.name()), ("measure", "refused at a full table")]);
    refused_row.push(refused as f64);
    refused_row.note(format!("{begun} flows begun, room for {most}"));
    let alive_row = table.row("flows", [("device", device.name()), ("measure", "alive then")]);
    alive_row.push(alive as f64);
    alive_row.note("counted by answering every flow; conntrack makes room for answers that belong to none");
    Ok(())
}
