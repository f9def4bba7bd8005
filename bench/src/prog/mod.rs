//! The loaded programs alone, without any driver: nanoseconds per packet on each path, for tables of several sizes.
//!
//! ```text
//! mod --> measure (how a packet's time is taken) --> path (which frames) --> flows (which connections)
//!     \-> bed (namespace, datapath, full tables) ----------------------------^
//! ```
//!
//! All tables are in memory at once, and every round visits all of them: rounds are interleaved, so that whatever the
//! machine does meanwhile happens to every figure.

mod bed;
mod flows;
mod measure;
mod path;
mod rules;

use crate::load::{Access, come_first, stay_on};
use crate::report::Table;
use anyhow::{Context, Result, ensure};
use bed::{Bed, Filling, HEADROOM};
use forwarder::host::Bpffs;
use forwarder_kit::Netns;
use measure::{Amount, Meter};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use path::{Method, Path};
use rules::Rules;
use std::time::{Duration, Instant};

/// Connections that the tables can be filled with: beyond, public addresses run out of the network they are taken from.
const MOST_CONNECTIONS: u32 = 4_000_000;

/// Row of what is taken off all others.
const HARNESS: &str = "(harness, taken off all others)";
/// Row of the other way to measure on a path where both work: how far figures taken in calls can be trusted.
const CHECK: &str = "(check: established IPv4 UDP, out, in calls)";

/// Row of what memory alone costs, the limit of every path that finds its flow in a table larger than the caches.
const ACCESS: &str = "(one access at random to as much memory, nothing else)";

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Numbers of connections that the tables are filled with
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1_000, 4_000, 64_000, 100_000, 1_000_000],
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_CONNECTIONS)))]
    pub flows: Vec<u32>,
    /// Rounds, each with every path and every table
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,
    /// The headline in half a minute: five short rounds with 1,000, 100,000 and 1,000,000 connections, without TCP
    #[arg(long)]
    pub quick: bool,
    /// Leave out the paths with firewall rules
    #[arg(skip)]
    pub without_rules: bool,
}

impl Options {
    /// The tables of the headline; `quick` as `--quick`, but in half the time.
    pub fn headline(quick: bool) -> Self {
        let flows = vec![256, 1_000, 4_000, 64_000, 100_000, 1_000_000];
        Self { flows, rounds: if quick { 3 } else { 7 }, quick, without_rules: quick }
    }
}

/// `Options` with `--quick` worked in.
struct Plan {
    flows: Vec<u32>,
    rounds: u32,
    fillings: &'static [Filling],
    rules: &'static [Rules],
    amount: Amount,
}

impl Options {
    fn plan(&self) -> Plan {
        let rules = if self.without_rules { &[] } else { &Rules::ALL[..] };
        if self.quick {
            let amount = Amount { chains: 1000, calls: 2500, begun: 300 };
            return Plan {
                flows: vec![1_000, 100_000, 1_000_000],
                rounds: self.rounds.min(5),
                fillings: &[Filling::Udp],
                rules,
                amount,
            };
        }
        let amount = Amount { chains: 4000, calls: 10_000, begun: HEADROOM as usize - 100 };
        Plan { flows: self.flows.clone(), rounds: self.rounds, fillings: &[Filling::Udp, Filling::Tcp], rules, amount }
    }

    /// How long it will take, roughly: inserting 4 entries a connection at half a microsecond, then the rounds.
    fn expected(&self) -> Duration {
        let plan = self.plan();
        let connections: u64 = plan.flows.iter().map(|flows| u64::from(*flows)).sum();
        let fill = connections * 6 * 700 * plan.fillings.len() as u64 / 2;
        let beds = (plan.flows.len() * plan.fillings.len()) as u64;
        let round = beds * (plan.amount.calls as u64 * 20 * 5_000 + plan.amount.chains as u64 * 2 * 60_000);
        Duration::from_secs(2 * beds) + Duration::from_nanos(fill + u64::from(plan.rounds) * round)
    }
}

/// Measures everything in interleaved rounds.
///
/// # Errors
/// When something cannot be set up, memory does not suffice, or packets take another path than they should.
pub fn run(options: &Options) -> Result<Table> {
    let plan = options.plan();
    check_memory(&plan)?;
    eprintln!("prog: this takes about {} s", options.expected().as_secs());
    let netns = Netns::new("prog")?;
    bed::furnish(&netns, plan.flows.len() * plan.fillings.len())?;
    let bpffs = Bpffs::mount(std::path::Path::new(Bpffs::USUAL))?;
    let measured = netns.enter(|| rounds(&netns, &plan));
    bpffs.unmount_if_unused()?;
    measured
}

/// Everything, in the namespace.
fn rounds(netns: &Netns, plan: &Plan) -> Result<Table> {
    let beds = beds(netns, plan)?;
    // Not before: what is measured stays on one CPU, but the kernel takes programs on all of them at a time.
    settle()?;
    let mut meters: Vec<_> = beds.iter().map(|bed| (bed, Meter::new(bed))).collect();
    let mut table = Table::new("prog");
    for round in 1..=plan.rounds {
        for (bed, meter) in &mut meters {
            eprintln!("prog: round {round} of {}: {} connections, {:?}", plan.rounds, bed.connections(), bed.filling);
            measure(&mut table, bed, meter, plan)?;
        }
    }
    // Paths first, in their order; what is there to judge them by, last.
    table.rows.sort_by_key(|row| {
        Path::ALL.iter().position(|path| path.name() == row.label("path")).unwrap_or(Path::ALL.len())
    });
    Ok(table)
}

/// Slots of four directions a connection, twice with TCP, and for a moment as much again as IPv4's; a table is made for a power of two.
fn check_memory(plan: &Plan) -> Result<()> {
    let connections: u64 = plan.flows.iter().map(|flows| u64::from((flows + HEADROOM).next_power_of_two())).sum();
    let needed = connections * if plan.fillings.len() > 1 { 1300 } else { 1000 };
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let available = line.trim().trim_end_matches(" kB").parse::<u64>().context("MemAvailable is no number")? * 1024;
    ensure!(needed < available, "{} MiB are needed, {} available; name fewer --flows", needed >> 20, available >> 20);
    Ok(())
}

/// On one CPU, whose counters and caches are meant throughout, before others.
fn settle() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot read which CPUs are allowed")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    come_first();
    stay_on(last.context("no CPU to run on")?)
}

fn beds(netns: &Netns, plan: &Plan) -> Result<Vec<Bed>> {
    let mut beds = Vec::new();
    for filling in plan.fillings {
        for flows in &plan.flows {
            let begun = Instant::now();
            beds.push(Bed::new(netns, beds.len(), *flows, *filling).with_context(|| format!("{flows} connections"))?);
            eprintln!("prog: filled with {flows} connections, {filling:?}, in {:.1} s", begun.elapsed().as_secs_f64());
        }
    }
    Ok(beds)
}

/// One round on one bed.
fn measure(table: &mut Table, bed: &Bed, meter: &mut Meter<'_>, plan: &Plan) -> Result<()> {
    let amount = plan.amount;
    let flows = bed.connections();
    let harness = meter.harness_ns()?;
    for path in Path::ALL.into_iter().filter(|path| path.filling() == bed.filling && path.method() == Method::Chain) {
        let figure = meter.chain_ns(path, amount)?;
        push(table, path.name(), flows, figure - harness);
    }
    if bed.filling == Filling::Tcp {
        return Ok(());
    }
    for path in Path::ALL.into_iter().filter(|path| path.method() == Method::Calls) {
        push(table, path.name(), flows, meter.calls_ns(path, amount)? - harness);
    }
    for rules in plan.rules.iter().copied() {
        rules::set(bed, rules)?;
        for path in [Path::New4, Path::New6, Path::Deny, Path::Udp4Out] {
            let name = format!("{}, {}", path.name(), rules.name());
            push(table, &name, flows, meter.calls_ns(path, amount)? - harness);
        }
        rules::clear(bed)?;
    }
    push(table, ACCESS, flows, Access::new(flows, bed.slots4)?.ns()?);
    push(table, HARNESS, flows, harness);
    push(table, CHECK, flows, meter.calls_ns(Path::Udp4Out, amount)? - harness);
    Ok(())
}

fn push(table: &mut Table, path: &str, flows: u32, figure_ns: f64) {
    table.row("ns", [("path", path), ("flows", &flows.to_string())]).push(figure_ns);
}
