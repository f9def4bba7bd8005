//! What the loop, the sweeper and the control socket share while a datapath runs.
//!
//! Locks are held for a copy or a system call, never across another lock or an await.

use crate::config::Timeouts;
use crate::controller::{Done, Order};
use crate::datapath::{Datapath, DatapathError, FlowTable, Key};
use crate::firewall::report::{InForce, RuleReport};
use crate::flowlog::FlowLogs;
use crate::flowlog::change::Prepared;
use crate::flowlog::feed::Regroup;
use crate::flows::given_up::GivenUps;
use crate::flows::list::Clock;
use crate::flows::sweep::Census;
use crate::measure::rates::{Count, Meter};
use crate::status::{self, Interface, PublicAddress, Room, Served, Status};
use crossbeam::channel::{Sender, bounded};
use forwarder_ebpf::verdict::Drop;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// A census as young as this is not taken again for somebody who asks.
const FRESH: Duration = Duration::from_millis(200);
/// A pass that takes longer than this is not made for somebody who asks: the sweeper's own will do.
const CHEAP: Duration = Duration::from_secs(1);

/// Those who watch the biggest talkers at a time: each remembers all connections, and may use a tenth of a core.
const MOST_TOPS: usize = 4;

/// How long the last pass may take, and the writing of what it found.
const LAST_PASS: Duration = Duration::from_secs(10);
const LAST_RECORDS: Duration = Duration::from_secs(15);

/// A request to the sweeper for a pass now; answered by dropping it.
#[derive(Debug)]
pub struct SweepRequest {
    /// Who waits for it.
    pub done: Sender<()>,
    /// It is the last one, after the end of forwarding: all windows of flow logs end with it.
    pub last: bool,
    /// Flow logs go elsewhere from this pass on.
    pub flow_logs: Option<Regroup>,
}

/// What is served, as the loop last decided.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Interfaces that are served, by slot.
    pub served: Vec<Served>,
    /// Interfaces that are not, and why.
    pub not_served: BTreeMap<String, String>,
    /// Ports that NAT may use on each address.
    pub ports: u32,
    /// Moves with every change.
    pub epoch: u32,
    /// Slots in use, counted from 0.
    pub slots: u32,
    /// Drops that the controller itself made, by name of the ingress interface.
    pub own_drops: BTreeMap<String, BTreeMap<Drop, Count>>,
}

/// The shared state.
#[derive(Debug)]
pub struct Live {
    datapath: Datapath,
    instance: String,
    begun: Instant,
    ticks_per_second: u32,
    timeouts: Mutex<Timeouts>,
    orders: tokio::sync::mpsc::Sender<Order>,
    rules: Mutex<InForce>,
    sweeper: Sender<SweepRequest>,
    view: Mutex<View>,
    meter: Mutex<Meter>,
    census: Mutex<Census>,
    pressure: AtomicBool,
    limits_sources: AtomicBool,
    sweeps: AtomicU32,
    flow_logs: FlowLogs,
    given_up: Mutex<GivenUps>,
    tops: Arc<Semaphore>,
}

impl Live {
    /// Around a loaded datapath. Requests for a pass go to the sweeper, `orders` to the loop.
    pub fn new(
        instance: &str,
        datapath: Datapath,
        timeouts: Timeouts,
        (sweeper, flow_logs): (Sender<SweepRequest>, FlowLogs),
        orders: tokio::sync::mpsc::Sender<Order>,
    ) -> Self {
        Self {
            datapath,
            instance: instance.to_owned(),
            begun: Instant::now(),
            ticks_per_second: ticks_per_second(),
            timeouts: Mutex::new(timeouts),
            orders,
            rules: Mutex::default(),
            sweeper,
            view: Mutex::default(),
            meter: Mutex::default(),
            census: Mutex::default(),
            pressure: AtomicBool::new(false),
            limits_sources: AtomicBool::new(false),
            sweeps: AtomicU32::new(0),
            flow_logs,
            given_up: Mutex::default(),
            tops: Arc::new(Semaphore::new(MOST_TOPS)),
        }
    }

    /// The datapath.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Flow logs.
    pub fn flow_logs(&self) -> &FlowLogs {
        &self.flow_logs
    }

    /// Packets that the controller has dropped and no pass has taken to flow logs yet.
    pub fn given_up(&self) -> MutexGuard<'_, GivenUps> {
        self.given_up.lock().expect("no thread panics while it holds what was given up")
    }

    /// Begins to watch the biggest talkers, until what is returned is dropped. `None`: too many do already, and for longer than it
    /// takes one of them to come back with another filter.
    pub async fn watch_top(&self) -> Option<OwnedSemaphorePermit> {
        let permit = tokio::time::timeout(Duration::from_secs(2), self.tops.clone().acquire_owned());
        permit.await.ok()?.ok()
    }

    /// The idle times of connections.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts.lock().expect("no thread panics while it holds the timeouts").clone()
    }

    /// Changes the idle times.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.lock().expect("no thread panics while it holds the timeouts") = timeouts;
    }

    /// The firewall's rules as they are in force.
    pub fn rules(&self) -> MutexGuard<'_, InForce> {
        self.rules.lock().expect("no thread panics while it holds the rules")
    }

    /// Has the loop do something, and waits for what comes of it.
    ///
    /// # Errors
    /// What kept it from being done.
    pub async fn order(&self, order: impl FnOnce(oneshot::Sender<Done>) -> Order) -> Done {
        const ENDING: &str = "the controller is about to end";
        let (reply, done) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| ENDING.to_owned())?;
        done.await.unwrap_or_else(|_| Err(ENDING.to_owned()))
    }

    /// Every rule, and what it has met.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rule_reports(&self) -> Result<Vec<RuleReport>, DatapathError> {
        let rules = self.rules().clone();
        let counters = self.datapath.read_rule_counters(rules.counters())?;
        Ok(rules.report(&counters, (self.datapath.read_ticks()?, self.ticks_per_second)))
    }

    /// Kernel ticks in one second (HZ).
    pub fn ticks_per_second(&self) -> u32 {
        self.ticks_per_second
    }

    /// The clock that flow entries are stamped by, as of now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clock(&self) -> Result<Clock, DatapathError> {
        Ok(Clock { now: self.datapath.read_ticks()?, per_second: self.ticks_per_second })
    }

    /// What is served.
    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no thread panics while it holds the view")
    }

    /// The counters' readings.
    pub fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().expect("no thread panics while it holds the meter")
    }

    /// The latest census.
    pub fn census(&self) -> MutexGuard<'_, Census> {
        self.census.lock().expect("no thread panics while it holds the census")
    }

    /// Whether the flow table is nearly full: the sweeper then gives up what is no connection yet, and works faster.
    pub fn is_under_pressure(&self) -> bool {
        self.pressure.load(Ordering::Relaxed)
    }

    /// Says whether the flow table is nearly full.
    pub fn set_pressure(&self, pressure: bool) {
        self.pressure.store(pressure, Ordering::Relaxed);
    }

    /// Whether flows are limited by source, so that the sweeper has to count them.
    pub fn limits_sources(&self) -> bool {
        self.limits_sources.load(Ordering::Relaxed)
    }

    /// Says whether flows are limited by source.
    pub fn set_limits_sources(&self, limited: bool) {
        self.limits_sources.store(limited, Ordering::Relaxed);
    }

    /// Says which pass of the sweeper the limits for new flows go by now.
    pub fn set_sweeps(&self, passes: u32) {
        self.sweeps.store(passes, Ordering::Relaxed);
    }

    /// Everything `forwarder status` says. Blocks for as long as a pass over the flow table takes, if that is not long.
    pub fn status(&self) -> Status {
        self.freshen_census();
        let view = self.view().clone();
        let interfaces = self.interfaces(&view);
        let census = self.census().clone();
        let processing_time = self.meter().processing_time();
        let rooms = [room(&self.datapath.flows4, census.flows4), room(&self.datapath.flows6, census.flows6)];
        Status {
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.begun.elapsed().as_secs_f64(),
            adopted: self.datapath.is_adopted(),
            epoch: view.epoch,
            not_served: view.not_served,
            total: status::total(&interfaces),
            drops: status::drops(&interfaces),
            passed: status::passed(&interfaces),
            flows: status::flows(&census, rooms, self.sweeps.load(Ordering::Relaxed)),
            public_addresses: public_addresses(&census, view.ports),
            flow_logs: self.flow_logs.status(),
            processing_time,
            interfaces,
        }
    }

    fn interfaces(&self, view: &View) -> Vec<Interface> {
        let mut meter = self.meter();
        if let Err(error) = meter.refresh(&self.datapath, view.slots) {
            // The last second's reading stands in.
            tracing::warn!(error = crate::error::one_line(&error), "cannot read the counters");
        }
        let with_own_drops = |served: &Served| {
            let mut interface = status::interface(served, &meter);
            for (reason, count) in view.own_drops.get(&served.name).into_iter().flatten() {
                let drops = interface.drops.entry(reason.name().to_owned()).or_default();
                drops.packets += count.packets;
                drops.bytes += count.bytes;
            }
            interface
        };
        view.served.iter().map(with_own_drops).collect()
    }

    fn freshen_census(&self) {
        let (at, took) = {
            let census = self.census();
            (census.at, census.took)
        };
        // Whoever asks again and again has the sweeper work half of the time at most.
        if at.is_some_and(|at| at.elapsed() < FRESH.max(2 * took)) || took > CHEAP {
            return;
        }
        let (request, done) = bounded(0);
        if self.sweeper.send(SweepRequest { done: request, last: false, flow_logs: None }).is_ok() {
            // An error is the answer: the sweeper has dropped the request.
            let _ = done.recv_timeout(2 * CHEAP);
        }
    }

    /// Has flow logs go elsewhere, with a pass now. Blocks until it is made, however long that takes: before that, what is not
    /// wanted any more is still handed records.
    pub fn change_flow_logs(&self, mut prepared: Prepared) {
        let (request, done) = bounded(0);
        let flow_logs = prepared.regroup();
        if self.sweeper.send(SweepRequest { done: request, last: false, flow_logs }).is_ok() {
            // An error is the answer: the sweeper has dropped the request.
            let _ = done.recv();
        }
        self.flow_logs.commit(prepared);
    }

    /// Forwarding has ended: has what the flows counted since their last records logged, and ends flow logs.
    pub fn finish_flow_logs(&self) {
        let (request, done) = bounded(0);
        if self.sweeper.send(SweepRequest { done: request, last: true, flow_logs: None }).is_ok() {
            let _ = done.recv_timeout(LAST_PASS);
        }
        self.flow_logs.finish(LAST_RECORDS);
    }
}

/// The room of a table in which the census has found so many connections.
fn room<K: Key>(table: &FlowTable<K>, found: u64) -> Room {
    let taken = table.used().map(|entries| u64::from(entries.div_ceil(2))).unwrap_or_else(|error| {
        // What was found has some of it in any case.
        tracing::warn!(error = crate::error::one_line(&error), "cannot read how much room a flow table has");
        found
    });
    Room { most: u64::from(table.max_entries() / 2), taken }
}

fn public_addresses(census: &Census, ports: u32) -> Vec<PublicAddress> {
    let of = |(address, usage): (&std::net::Ipv4Addr, &crate::flows::sweep::PortUse)| PublicAddress {
        address: address.to_string(),
        flows: usage.flows,
        ports_used: usage.ports,
        ports,
    };
    census.public.iter().map(of).collect()
}

/// HZ: the resolution of the coarse clock is one tick (clock_getres(2)).
fn ticks_per_second() -> u32 {
    use nix::time::{ClockId, clock_getres};
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::from_millis(4), Duration::from);
    (1e9 / tick.as_nanos().max(1) as f64).round() as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tick_is_one_that_kernels_are_built_with() {
        assert!([100, 250, 300, 1000].contains(&super::ticks_per_second()));
    }
}
