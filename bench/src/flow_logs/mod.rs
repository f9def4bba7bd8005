//! Flow logs at their worst: connections of one packet each way and windows of one second. That each of them is in the
//! records, once for every interface and direction, with its packet and its bytes; and what that costs the controller and
//! the datapath.

mod records;

use crate::lab::{Family, FlowTable, Lab, Orders, step};
use crate::local::{Size, meet};
use crate::process::Process;
use crate::report::Table;
use anyhow::{Context, Result, bail, ensure};
use records::Expected;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where generator, device and sink run.
const CPU: usize = 0;
/// Connections that are asked, then answered.
const CHUNK: u32 = 50_000;
/// Until a connection is forgotten, seconds: long enough for its answer, short enough to see the end of all.
const IDLE_S: u32 = 5;
/// From the start of a generation to the window that is measured.
const RUN_UP: Duration = Duration::from_millis(150);
/// From a controller's start to the generation: what waited for it is done.
const REST: Duration = Duration::from_millis(1500);
/// A run in which a frame was lost on its way says nothing of the records and is made again, so many times.
const ATTEMPTS: u32 = 3;

/// What a round of connections takes, a lab with flows, and a round of it, seconds, about.
const CONNECTIONS_S: u32 = 16;
const FLOWS_S: u32 = 5;
const RATE_S: u32 = 10;

/// The devices, as tables call them.
const WITH: &str = "with flow logs";
const WITHOUT: &str = "without flow logs";
const RATIO: &str = "with ÷ without";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Connections
    #[arg(long, default_value_t = 1_000_000)]
    pub connections: u32,
    /// Numbers of established flows whose packets are forwarded with and without flow logs
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000])]
    pub flows: Vec<u32>,
    /// Rounds of connections
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Rounds of forwarding, each with and without flow logs
    #[arg(long, default_value_t = 8)]
    pub rate_rounds: u32,
    /// Length of a window of forwarding, milliseconds
    #[arg(long, default_value_t = 2000)]
    pub window_ms: u64,
    /// A look in half a minute: fewer connections, one round
    #[arg(long)]
    pub quick: bool,
}

impl Options {
    fn resolved(&self) -> Self {
        if !self.quick {
            return self.clone();
        }
        let connections = self.connections.min(100_000);
        Self { connections, flows: vec![1_000], rounds: 1, rate_rounds: 1, window_ms: 300, ..*self }
    }
}

/// Measures in interleaved rounds.
///
/// # Errors
/// When something cannot be set up, and when a record is missing, double or wrong.
pub fn run(options: &Options) -> Result<Table> {
    let options = options.resolved();
    let seconds =
        CONNECTIONS_S * options.rounds + (options.flows.len() as u32) * (FLOWS_S + RATE_S * options.rate_rounds);
    eprintln!("flow-logs: this takes about {seconds} s");
    let mut table = Table::new("flow-logs");
    for round in 1..=options.rounds {
        let run = Connections(options.connections);
        let outcome = run.attempt().with_context(|| format!("round {round}"))?;
        eprintln!("flow-logs: round {round} of {}: {outcome:?}", options.rounds);
        run.report(&outcome, &mut table);
    }
    for flows in &options.flows {
        rates(&options, *flows, &mut table).with_context(|| format!("{flows} flows"))?;
    }
    Ok(table)
}

/// The appliance's configuration with a log in `directory`.
fn log_to(directory: &Path, idle_s: u32) -> Orders {
    let more = format!(
        "[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\nformat = \"{}\"\n[[flow_logs.destination]]\n\
         kind = \"file\"\npath = \"{}/flow.log\"\ngzip = false\nkeep = 1000\n",
        records::FORMAT,
        directory.display()
    );
    Orders { idle_s, more }
}

/// One run of so many connections.
#[derive(Clone, Copy, Debug)]
struct Connections(u32);

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// Records, and from the first packet to the last of them.
    records: u64,
    records_s: f64,
    /// From the first packet until all connections are forgotten.
    all_s: f64,
    /// Of the controller in that time.
    cpu_s: f64,
    /// At the end of it, MiB.
    peak_mib: f64,
    /// At the worst that was seen, MiB.
    anonymous_mib: f64,
    /// Frames that were lost on their way.
    lost: u64,
}

impl Connections {
    fn attempt(self) -> Result<Outcome> {
        for attempt in 1..=ATTEMPTS {
            let outcome = self.run()?;
            if outcome.lost == 0 {
                return Ok(outcome);
            }
            eprintln!("flow-logs: attempt {attempt}: {} frames were lost on their way", outcome.lost);
        }
        bail!("frames were lost on their way {ATTEMPTS} times: this machine is too busy")
    }

    fn run(self) -> Result<Outcome> {
        let directory = tempfile::tempdir()?;
        let mut lab = Lab::with_orders(FlowTable::roomy(self.0), &log_to(directory.path(), IDLE_S))?;
        let appliance = lab.at_work.appliance.as_mut().context("no appliance")?;
        let process = Process::of(appliance.id()?);
        let (begun, cpu) = (Instant::now(), process.cpu_s()?);
        let mut outcome = Outcome { lost: connect(&mut lab, self.0)?, ..Outcome::default() };
        let appliance = lab.at_work.appliance.as_mut().context("no appliance")?;
        let written = watch_growth(directory.path(), begun, || {
            outcome.anonymous_mib = outcome.anonymous_mib.max(process.anonymous_mib()?);
            Ok(appliance.status()?.flows()? == 0)
        })?;
        (outcome.all_s, outcome.records_s) = (begun.elapsed().as_secs_f64(), written);
        (outcome.cpu_s, outcome.peak_mib) = (process.cpu_s()? - cpu, process.peak_mib()?);
        appliance.stop()?;
        if outcome.lost == 0 {
            let load = lab.config(Family::V4, self.0);
            outcome.records = Expected::new(&load).read(directory.path())?;
        }
        Ok(outcome)
    }

    fn report(self, outcome: &Outcome, table: &mut Table) {
        let mut push = |unit, measure, figure| {
            table.row(unit, [("device", WITH), ("measure", measure)]).push(figure);
        };
        push("records", "records", outcome.records as f64);
        push("1/s", "records per second", outcome.records as f64 / outcome.records_s);
        push("1/s", "records per second of CPU", outcome.records as f64 / outcome.cpu_s);
        push("s", "CPU", outcome.cpu_s);
        push("%", "share of a core", 100.0 * outcome.cpu_s / outcome.all_s);
        push("MiB", "peak memory", outcome.peak_mib);
        push("MiB", "anonymous memory", outcome.anonymous_mib);
    }
}

/// Asks and answers on every connection, a chunk at a time. Returns how many frames were lost.
fn connect(lab: &mut Lab, count: u32) -> Result<u64> {
    let bytes = Size::Short.bytes(Family::V4);
    let mut lost = 0;
    for first_flow in (0..count).step_by(CHUNK as usize) {
        let flows = CHUNK.min(count - first_flow);
        for directions in [1, 2] {
            let mut config = lab.config(Family::V4, flows);
            (config.first_flow, config.step, config.directions) = (first_flow, step(flows), directions);
            lab.load.configure(&config)?;
            lost += lab.load.burst(CPU, bytes, flows)?.lost;
            let counts = lab.load.counts()?;
            let off = counts.sum(|arrived| arrived.wrong + arrived.moved + arrived.duplicates);
            ensure!(off == 0, "{off} of {flows} frames arrived wrong, with another port, or twice");
        }
    }
    Ok(lost)
}

/// Looks until `is_over` says so; when a directory's files last grew by more than some lines, seconds since `begun`.
fn watch_growth(directory: &Path, begun: Instant, mut is_over: impl FnMut() -> Result<bool>) -> Result<f64> {
    const SOME_LINES: u64 = 4096;
    const LOOK: Duration = Duration::from_millis(50);
    const ASK: Duration = Duration::from_secs(1);
    let (mut bytes, mut last, mut asked) = (0, begun.elapsed(), Instant::now());
    loop {
        let now = size(directory)?;
        if now > bytes + SOME_LINES {
            last = begun.elapsed();
        }
        bytes = now;
        if asked.elapsed() > ASK {
            asked = Instant::now();
            if is_over()? {
                return Ok(last.as_secs_f64());
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Bytes in the files of a directory.
fn size(directory: &Path) -> Result<u64> {
    fs::read_dir(directory)?.map(|file| Ok(file?.metadata()?.len())).sum()
}

/// The datapath's rate without and with flow logs, in turn within each round. It is one datapath, with one table in one
/// place: only the controller is another each time.
fn rates(options: &Options, flows: u32, table: &mut Table) -> Result<()> {
    let (directory, patient) = (tempfile::tempdir()?, Orders::default());
    let orders = [patient.clone(), log_to(directory.path(), patient.idle_s)];
    let measure = format!("{flows} flows");
    let mut lab = Lab::with_orders(FlowTable::roomy(flows), &patient)?;
    meet(&mut lab, Family::V4, flows)?;
    for round in 1..=options.rate_rounds {
        let mut pps = [0.0; 2];
        // What comes and goes by itself is not always the second's.
        let order = if round % 2 == 0 { [1, 0] } else { [0, 1] };
        for at in order {
            lab.replace_controller(&orders[at])?;
            std::thread::sleep(REST);
            let config = lab.config(Family::V4, flows);
            lab.load.configure(&config)?;
            let length = Duration::from_millis(options.window_ms);
            pps[at] = lab.load.window(CPU, Size::Short.bytes(Family::V4), RUN_UP, length)?.pps;
        }
        let ratio = pps[1] / pps[0];
        eprintln!("flow-logs: round {round}, {measure}: {:.3} and {:.3} Mpps, {ratio:.3}", pps[0] / 1e6, pps[1] / 1e6);
        for (device, pps) in [WITHOUT, WITH].into_iter().zip(pps) {
            table.row("pps", [("device", device), ("measure", &measure)]).push(pps);
        }
        table.row("ratio", [("device", RATIO), ("measure", &measure)]).push(ratio);
    }
    Ok(())
}
