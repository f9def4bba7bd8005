//! What the appliance takes beside the packets: its sweeper's share of a core and its controller's memory while the datapath
//! is under load, and what the kernel has allotted for a connection.
//!
//! A sweeper's passes over many connections are seconds apart, so its time is taken from the end of one pass to the end of a
//! later one; `status` knows of an end within a second, in which the sweeper rests.

use crate::load::{MapSize, map_size};
use crate::process::Process;
use crate::report::Table;
use anyhow::Result;
use forwarder::datapath::{Key, maps_directory};
use forwarder_ebpf::abi::{FlowKey4, FlowKey6};
use forwarder_kit::Appliance;
use forwarder_kit::run::PATIENCE;
use std::time::{Duration, Instant};

/// Name of the thread that passes over the flow table.
const SWEEPER: &str = "sweeper";
/// What the flow tables are made of, by the family of their connections.
const FLOW_TABLES: [(&str, [&str; 3]); 2] =
    [("an IPv4 connection", FlowKey4::MAPS), ("an IPv6 connection", FlowKey6::MAPS)];

/// How long [`Watch::begin`] and [`Watch::report`] wait for passes to end, about, with so many flows.
pub fn expected(flows: u32) -> Duration {
    // A pass takes some 120 ns a flow and is followed by 24 times as long, at least a second. Two are waited for.
    2 * Duration::from_secs(1).max(Duration::from_nanos(3000 * u64::from(flows)))
}

/// A controller that is watched since the end of a pass.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    /// That fit each of its tables.
    connections: u32,
    begun: Instant,
    sweeper_s: f64,
}

impl Watch {
    /// Waits for a pass to end that found all flows, and begins there: the pause behind a pass is as long as that was.
    /// `connections` fit each table.
    ///
    /// # Errors
    /// When the controller does not run, or does not pass over its table.
    pub fn begin(appliance: &mut Appliance, connections: u32) -> Result<Self> {
        let process = Process::of(appliance.id()?);
        (0..2).try_for_each(|_| appliance.wait_for_pass(patience(connections)))?;
        Ok(Self { connections, begun: Instant::now(), sweeper_s: process.thread_cpu_s(SWEEPER)?, process })
    }

    /// Waits for a pass to end and adds what there was until then. `labels` say of which device, and with how many flows.
    ///
    /// # Errors
    /// As [`Watch::begin`], and when a map of the datapath is not pinned where it should be.
    pub fn report(&self, appliance: &Appliance, labels: [(&str, &str); 3], table: &mut Table) -> Result<()> {
        appliance.wait_for_pass(patience(self.connections))?;
        let (took_s, sweeper_s) = (self.begun.elapsed().as_secs_f64(), self.process.thread_cpu_s(SWEEPER)?);
        let mut push = |unit, measure, figure| {
            table.row(unit, labels.into_iter().chain([("measure", measure)])).push(figure);
        };
        push("% of a core", "sweeper", 100.0 * (sweeper_s - self.sweeper_s) / took_s);
        push("MiB", "controller, resident", self.process.resident_mib()?);
        push("MiB", "of it its own", self.process.anonymous_mib()?);
        let maps = appliance.pins().join(maps_directory());
        for (measure, names) in FLOW_TABLES {
            let sizes = names.map(|name| map_size(&maps.join(name)));
            let bytes: u64 = sizes.into_iter().map(|size| size.map(MapSize::bytes)).sum::<Result<_>>()?;
            push("B", measure, bytes as f64 / f64::from(self.connections));
        }
        Ok(())
    }
}

/// How long a pass may be waited for.
fn patience(connections: u32) -> Duration {
    PATIENCE.max(4 * expected(connections))
}
