//! Packets per second: generator, device and sink on one core, devices in turn within each round, so that whatever the
//! machine does meanwhile happens to all of them.
//!
//! For every number of flows each device gets a lab of its own, which stays for all rounds: every flow is known before any
//! is measured. The rate is what arrived at the sinks in a window in the middle of one long generation.

use crate::controller::{self, Watch};
use crate::lab::{Device, Directions, Family, FlowTable, Lab};
use crate::load::Window;
use crate::report::Table;
use anyhow::{Context, Result, ensure};
use forwarder_ebpf::abi::LoadConfig;
use std::time::{Duration, Instant};

/// Where everything runs.
const CPU: usize = 0;
/// From the start of a generation to the window: long enough to have begun.
const RUN_UP: Duration = Duration::from_millis(150);
/// What a measurement takes beside its window: run-up, start, stop, settling.
const AROUND: Duration = Duration::from_millis(280);
/// What it takes to build a lab and let it see a million flows, about.
const BUILD: Duration = Duration::from_millis(1500);

/// How often a device is shown its flows until every packet has arrived.
const MEETINGS: u32 = 5;
/// Rounds unless told otherwise.
const ROUNDS: u32 = 5;
/// Length of a measurement unless told otherwise, milliseconds.
const WINDOW_MS: u64 = 1000;

/// Sizes of frames on the wire, with frame check sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// The shortest: 64 bytes with IPv4, 82 with IPv6.
    #[value(name = "64")]
    Short,
    /// 64, 570 and 1,518 bytes, 7:4:1.
    Imix,
    /// The longest without jumbo frames.
    #[value(name = "1518")]
    Long,
}

impl Size {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "64",
            Self::Imix => "IMIX",
            Self::Long => "1518",
        }
    }

    /// Bytes of the frame that the generator begins with, without frame check sequence.
    pub fn bytes(self, family: Family) -> usize {
        match (self, family) {
            (Self::Short, Family::V4) => 60,
            (Self::Short, Family::V6) => 78,
            (Self::Imix | Self::Long, _) => 1514,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Numbers of flows
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000, 100_000, 1_000_000])]
    pub flows: Vec<u32>,
    /// Sizes of frames
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["64"])]
    pub sizes: Vec<Size>,
    /// One direction, or both in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["one"])]
    pub directions: Vec<Directions>,
    /// IP versions
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["4"])]
    pub families: Vec<Family>,
    /// Devices under test; by default all without rules
    #[arg(long, value_enum, value_delimiter = ',')]
    pub devices: Vec<Device>,
    /// Rounds, each with every device
    #[arg(long, default_value_t = ROUNDS)]
    pub rounds: u32,
    /// Length of a measurement, milliseconds
    #[arg(long, default_value_t = WINDOW_MS)]
    pub window_ms: u64,
    /// Everything: all sizes, one and both directions, IPv4 and IPv6
    #[arg(long)]
    pub full: bool,
    /// The headline in less than a minute: bare redirect, forwarder and nftables with 1,000, 100,000 and 1,000,000 flows,
    /// without the controller's share
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
}

impl Options {
    /// Everything at its default, and `--quick`, but in half the time.
    pub fn headline() -> Self {
        Self { quick: true, rounds: 3, window_ms: 200, ..Self::thorough() }
    }

    /// Everything at its default.
    pub fn thorough() -> Self {
        Self {
            flows: vec![1, 1_000, 100_000, 1_000_000],
            sizes: vec![Size::Short],
            directions: vec![Directions::One],
            families: vec![Family::V4],
            devices: vec![],
            rounds: ROUNDS,
            window_ms: WINDOW_MS,
            full: false,
            quick: false,
        }
    }

    /// With `--quick`, `--full` and what is not given filled in.
    fn resolved(&self) -> Self {
        let mut options = self.clone();
        if self.full {
            options.sizes = vec![Size::Short, Size::Imix, Size::Long];
            options.directions = vec![Directions::One, Directions::Both];
            options.families = vec![Family::V4, Family::V6];
        }
        if self.quick {
            options.flows = vec![1_000, 100_000, 1_000_000];
            options.window_ms = options.window_ms.min(500);
        }
        if options.devices.is_empty() {
            let headline = vec![Device::Bare, Device::Forwarder, Device::Nft];
            options.devices = if self.quick { headline } else { Device::USUAL.to_vec() };
        }
        options
    }

    /// How long it will take, about; controllers are watched or not.
    fn expected(&self, watch: bool) -> Duration {
        let labs = (self.families.len() * self.flows.len() * self.devices.len()) as u32;
        let windows = labs * (self.sizes.len() * self.directions.len()) as u32 * self.rounds;
        let controllers = self.devices.iter().filter(|device| device.is_forwarder()).count() * self.families.len();
        let watching: Duration = self.flows.iter().filter(|_| watch).map(|flows| controller::expected(*flows)).sum();
        BUILD * labs + (Duration::from_millis(self.window_ms) + AROUND) * windows + watching * controllers as u32
    }
}

/// Measures everything in interleaved rounds: packets per second and, unless it has to be quick, what the appliance takes
/// meanwhile beside the packets.
///
/// # Errors
/// When something cannot be set up, or a device does not do what it says: packets that are wrong, nothing that arrives.
pub fn run(options: &Options) -> Result<Vec<Table>> {
    let mut controllers = Table::new("controller");
    let rates = measure(options, Some(&mut controllers).filter(|_| !options.quick))?;
    Ok([rates, controllers].into_iter().filter(|table| !table.rows.is_empty()).collect())
}

/// Packets per second alone.
///
/// # Errors
/// As [`run`].
pub fn rates(options: &Options) -> Result<Table> {
    measure(options, None)
}

fn measure(options: &Options, mut controllers: Option<&mut Table>) -> Result<Table> {
    let options = options.resolved();
    eprintln!("local: this takes about {} s", options.expected(controllers.is_some()).as_secs());
    let mut table = Table::new("local");
    for family in &options.families {
        for flows in &options.flows {
            let mut labs = labs(&options, *family, *flows)?;
            let watches = controllers.is_some().then(|| watch(&mut labs)).transpose()?.unwrap_or_default();
            measure_rounds(&options, *family, *flows, &mut labs, &mut table)?;
            if let Some(controllers) = &mut controllers {
                report_watches(watches, &labs, [&flows.to_string(), family.name()], controllers)?;
            }
        }
    }
    Ok(table)
}

/// Begins to watch the controllers that there are, each with its lab's place.
fn watch(labs: &mut [Lab]) -> Result<Vec<(usize, Watch)>> {
    let mut watches = Vec::new();
    for (at, lab) in labs.iter_mut().enumerate() {
        let connections = lab.table.connections();
        if let Some(appliance) = &mut lab.at_work.appliance {
            watches.push((at, Watch::begin(appliance, connections)?));
        }
    }
    Ok(watches)
}

/// What the watched took.
fn report_watches(
    watches: Vec<(usize, Watch)>,
    labs: &[Lab],
    [flows, family]: [&str; 2],
    table: &mut Table,
) -> Result<()> {
    for (at, watch) in watches {
        let lab = &labs[at];
        let appliance = lab.at_work.appliance.as_ref().context("it was there when it began to be watched")?;
        let labels = [("device", lab.device.name()), ("flows", flows), ("family", family)];
        watch.report(appliance, labels, table)?;
    }
    Ok(())
}

/// All devices with one number of flows, which they know.
fn labs(options: &Options, family: Family, flows: u32) -> Result<Vec<Lab>> {
    let begun = Instant::now();
    let mut labs = Vec::new();
    for device in &options.devices {
        let what = || format!("{}, {} with {flows} flows", device.name(), family.name());
        let mut lab = Lab::new(*device, FlowTable::roomy(flows)).with_context(what)?;
        meet(&mut lab, family, flows).with_context(what)?;
        labs.push(lab);
    }
    eprintln!("local: {} with {flows} flows, ready after {:.1} s", family.name(), begun.elapsed().as_secs_f64());
    Ok(labs)
}

fn measure_rounds(options: &Options, family: Family, flows: u32, labs: &mut [Lab], table: &mut Table) -> Result<()> {
    for round in 1..=options.rounds {
        for (size, directions) in pairs(&options.sizes, &options.directions) {
            for lab in &mut *labs {
                let point = Point { family, flows, size, directions };
                let window = point.measure(lab, Duration::from_millis(options.window_ms));
                let window = window.with_context(|| format!("{}, {point:?}", lab.device.name()))?;
                eprintln!(
                    "local: round {round} of {}: {flows} flows, {} bytes, {}, {}: {:.3} Mpps",
                    options.rounds,
                    size.name(),
                    directions.name(),
                    lab.device.name(),
                    window.pps / 1e6
                );
                point.report(lab, round, &window, table)?;
            }
        }
    }
    Ok(())
}

fn pairs<A: Copy, B: Copy>(left: &[A], right: &[B]) -> Vec<(A, B)> {
    left.iter().flat_map(|a| right.iter().map(|b| (*a, *b))).collect()
}

/// Lets a device that knows flows see every one: asked, answered, and asked again, with which a flow is established to the
/// forwarder and to conntrack alike. What loses packets, when the machine was elsewhere for a moment, is done again: an answer
/// to a flow that conntrack does not know begins another, which takes the first one's port. When packets did not arrive the last
/// time either, the lab's figures are to be read with that in mind.
///
/// # Errors
/// When the kernel refuses.
pub fn meet(lab: &mut Lab, family: Family, flows: u32) -> Result<()> {
    const OUT: u32 = 1;
    const BACK: u32 = 2;
    let mut lost = 0;
    if !lab.device.has_flows() {
        return Ok(());
    }
    for directions in [OUT, BACK, OUT] {
        let mut missing = 0;
        for _ in 0..MEETINGS {
            lab.load.configure(&LoadConfig { directions, ..lab.config(family, flows) })?;
            missing = lab.load.burst(CPU, Size::Short.bytes(family), flows)?.lost;
            if missing == 0 {
                break;
            }
        }
        lost += missing;
    }
    if lost > 0 {
        let caution = format!("{lost} packets of {flows} flows' first three were lost every time");
        eprintln!("{}: {caution}", lab.device.name());
        lab.caution = Some(caution);
    }
    Ok(())
}

/// One point of the matrix.
#[derive(Clone, Copy, Debug)]
struct Point {
    family: Family,
    flows: u32,
    size: Size,
    directions: Directions,
}

impl Point {
    fn measure(&self, lab: &mut Lab, length: Duration) -> Result<Window> {
        let mut config = lab.config(self.family, self.flows);
        config.directions = if self.directions == Directions::Both { 3 } else { 1 };
        let bytes = self.size.bytes(self.family);
        config.imix = if self.size == Size::Imix { bytes as u32 } else { 0 };
        lab.load.configure(&config)?;
        lab.load.window(CPU, bytes, RUN_UP, length)
    }

    fn report(&self, lab: &Lab, round: u32, window: &Window, table: &mut Table) -> Result<()> {
        let flows = self.flows.to_string();
        let labels = [
            ("device", lab.device.name()),
            ("flows", &flows),
            ("size", self.size.name()),
            ("direction", self.directions.name()),
            ("family", self.family.name()),
        ];
        let row = table.row("pps", labels);
        row.push(window.pps);
        lab.caution.iter().for_each(|caution| row.note(caution));
        // A veth's ring loses some when the other end is late; that is a figure, not a failure.
        if window.lost() > 0 {
            row.note(format!("round {round} lost {:.4} % ({} frames)", 100.0 * window.loss(), window.lost()));
        }
        let (moved, late) = (window.total.sum(|arrived| arrived.moved), window.total.sum(|arrived| arrived.late));
        let duplicates = window.total.sum(|arrived| arrived.duplicates);
        if moved + late + duplicates > 0 {
            row.note(format!("round {round}: {moved} with another port, {late} late, {duplicates} twice"));
        }
        let wrong = window.total.sum(|arrived| arrived.wrong);
        ensure!(wrong == 0, "{wrong} of {} frames arrived wrong ({self:?})", window.total.all_arrived());
        Ok(())
    }
}
