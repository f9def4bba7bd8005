//! Round trips of single packets, idle and beside a load, forwarder beside kernel NAT.
//!
//! A client on CPU 1 sends and spins until the answer is there: sockets that sleep measure the VM's wake-ups. The sink answers
//! in XDP, so no other process is in the way. The load comes from the generator on CPU 0, spaced evenly, through the same
//! queues of the device; its levels are shares of the highest rate at which kernel NAT loses nothing, so that both devices bear
//! the same packets per second.

use crate::lab::{Device, Family, FlowTable, Lab};
use crate::load::{come_first, stay_on};
use crate::local::{Size, meet};
use crate::report::Table;
use anyhow::{Context, Result, bail, ensure};
use forwarder_ebpf::abi::LOAD_ECHO_PORT;
use hdrhistogram::Histogram;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Where the load is made, and its packets forwarded.
const LOAD_CPU: usize = 0;
/// Where the client spins.
const CLIENT_CPU: usize = 1;
/// Bytes of a ping's payload: a frame of 60 bytes.
const PAYLOAD: usize = 18;
/// A ping that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(50);
/// From the start of a load to the first ping.
const RUN_UP: Duration = Duration::from_millis(150);
/// To build the devices, and find what 100 % are.
const SET_UP: Duration = Duration::from_secs(6);
/// Percentiles shown, with their names.
const PERCENTILES: [(f64, &str); 4] = [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9")];

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Loads in percent of the kernel's highest rate without loss
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 50, 90])]
    pub loads: Vec<u32>,
    /// Flows of the load
    #[arg(long, default_value_t = 1_000)]
    pub flows: u32,
    /// Rounds, each with every device
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Length of a measurement, milliseconds
    #[arg(long, default_value_t = 1000)]
    pub window_ms: u64,
    /// Devices under test
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["forwarder", "nft"])]
    pub devices: Vec<Device>,
    /// Packets per second that are 100 %, instead of what is found
    #[arg(long)]
    pub full_pps: Option<f64>,
}

impl Options {
    /// Idle and beside the heaviest load only, in a few seconds.
    pub fn headline() -> Self {
        Self { loads: vec![0, 90], rounds: 3, window_ms: 200, ..Self::thorough() }
    }

    /// Everything at its default.
    pub fn thorough() -> Self {
        Self {
            loads: vec![0, 10, 50, 90],
            flows: 1_000,
            rounds: 5,
            window_ms: 1000,
            devices: vec![Device::Forwarder, Device::Nft],
            full_pps: None,
        }
    }

    /// How long it will take, about.
    fn expected(&self) -> Duration {
        let windows = self.rounds * (self.loads.len() * self.devices.len()) as u32;
        SET_UP + (Duration::from_millis(self.window_ms) + RUN_UP) * windows
    }
}

/// Round trips of one measurement.
struct Trips {
    histogram: Histogram<u64>,
    lost: u64,
}

/// Measures in interleaved rounds.
///
/// # Errors
/// When something cannot be set up, or no ping comes back.
pub fn run(options: &Options) -> Result<Table> {
    eprintln!("latency: this takes about {} s", options.expected().as_secs());
    let full_pps = match options.full_pps {
        Some(pps) => pps,
        None => highest_lossless(options)?,
    };
    eprintln!("latency: 100 % are {:.3} Mpps", full_pps / 1e6);
    let mut labs = Vec::new();
    for device in &options.devices {
        let mut lab = Lab::new(*device, FlowTable::roomy(options.flows))?;
        meet(&mut lab, Family::V4, options.flows)?;
        labs.push(lab);
    }
    let mut table = Table::new("latency");
    for round in 1..=options.rounds {
        for load in &options.loads {
            for lab in &mut labs {
                let pps = full_pps * f64::from(*load) / 100.0;
                let trips = measure(lab, options, pps);
                let trips = trips.with_context(|| format!("{}, {load} % load", lab.device.name()))?;
                report(lab.device, *load, pps, &trips, &mut table);
                let p50_us = trips.histogram.value_at_percentile(50.0) as f64 / 1e3;
                eprintln!("latency: round {round}: {load} % load, {}: p50 {p50_us:.1} us", lab.device.name());
            }
        }
    }
    Ok(table)
}

/// The highest rate at which kernel NAT loses nothing: what it forwards at the generator's full speed, or if that loses, as
/// much less as it takes.
fn highest_lossless(options: &Options) -> Result<f64> {
    let flows = options.flows;
    let mut lab = Lab::new(Device::Nft, FlowTable::roomy(flows))?;
    meet(&mut lab, Family::V4, flows)?;
    let (bytes, length) = (Size::Short.bytes(Family::V4), Duration::from_millis(options.window_ms));
    let mut config = lab.config(Family::V4, flows);
    lab.load.configure(&config)?;
    let mut window = lab.load.window(LOAD_CPU, bytes, RUN_UP, length)?;
    let mut pps = window.pps;
    while window.lost() > 0 {
        pps *= 0.95;
        ensure!(pps > 1e4, "kernel NAT loses packets at every rate");
        config.interval_ns = (1e9 / pps) as u32;
        lab.load.configure(&config)?;
        window = lab.load.window(LOAD_CPU, bytes, RUN_UP, length)?;
    }
    Ok(pps)
}

fn measure(lab: &mut Lab, options: &Options, pps: f64) -> Result<Trips> {
    let length = Duration::from_millis(options.window_ms);
    let mut config = lab.config(Family::V4, options.flows);
    config.interval_ns = if pps > 0.0 { (1e9 / pps) as u32 } else { 0 };
    lab.load.configure(&config)?;
    let (load, client) = (&lab.load, &lab.client);
    if pps == 0.0 {
        return client.enter(|| ping(length));
    }
    let trips = load.while_generating(LOAD_CPU, Size::Short.bytes(Family::V4), || {
        std::thread::sleep(RUN_UP);
        client.enter(|| ping(length))
    })?;
    let counts = load.counts()?;
    let wrong = counts.sum(|arrived| arrived.wrong);
    ensure!(wrong == 0, "{wrong} of {} frames of the load arrived wrong", counts.all_arrived());
    Ok(trips)
}

/// Sends, spins until the answer is there, sends again.
fn ping(length: Duration) -> Result<Trips> {
    stay_on(CLIENT_CPU)?;
    come_first();
    let socket = UdpSocket::bind((Ipv4Addr::new(10, 1, 0, 2), 0)).context("cannot make a socket")?;
    socket.connect((Ipv4Addr::new(10, 2, 0, 2), LOAD_ECHO_PORT)).context("cannot choose a server")?;
    socket.set_nonblocking(true).context("cannot poll a socket")?;
    let mut trips = Trips { histogram: Histogram::new(3).context("cannot make a histogram")?, lost: 0 };
    let (begun, mut number) = (Instant::now(), 0_u64);
    while begun.elapsed() < length {
        number += 1;
        match trip(&socket, number)? {
            Some(took) => trips.histogram.record(took.as_nanos() as u64).context("cannot note a round trip")?,
            None => trips.lost += 1,
        }
    }
    ensure!(!trips.histogram.is_empty(), "no ping came back");
    Ok(trips)
}

/// One round trip. `None`: lost.
fn trip(socket: &UdpSocket, number: u64) -> Result<Option<Duration>> {
    let mut payload = [0; PAYLOAD];
    payload[..8].copy_from_slice(&number.to_ne_bytes());
    let sent = Instant::now();
    socket.send(&payload).context("cannot send a ping")?;
    let mut answer = [0; PAYLOAD];
    loop {
        match socket.recv(&mut answer) {
            // An answer that was given up before may still come.
            Ok(_) if answer == payload => return Ok(Some(sent.elapsed())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if sent.elapsed() > PATIENCE {
                    return Ok(None);
                }
            }
            Err(error) => bail!("cannot receive: {error}"),
        }
    }
}

fn report(device: Device, load: u32, pps: f64, trips: &Trips, table: &mut Table) {
    let load = if load == 0 { "idle".to_owned() } else { format!("{load} % ({:.3} Mpps)", pps / 1e6) };
    let values = PERCENTILES.map(|(percentile, name)| (name, trips.histogram.value_at_percentile(percentile)));
    for (name, ns) in values.into_iter().chain([("max", trips.histogram.max())]) {
        let row = table.row("us", [("device", device.name()), ("load", &load), ("percentile", name)]);
        row.push(ns as f64 / 1e3);
        // Once for all percentiles.
        if trips.lost > 0 && name == "max" {
            row.note(format!("{} of {} pings lost", trips.lost, trips.lost + trips.histogram.len()));
        }
    }
}
