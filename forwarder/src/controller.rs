//! The loop: what happens on the host, and the passing of time, become what the datapath is told.
//!
//! ```text
//! host events ---+                  +--> interfaces attached, slots, addresses
//! seconds -------+--> plan, apply --+--> source NAT, a bank at a time
//! held frames ---+                  +--> epoch: every flow asks the FIB again
//! ```
//!
//! Whatever goes wrong with one interface is said and does not keep the others from being served; what could not be done
//! is tried again.

mod firewall;
mod interfaces;
mod neighbours;
mod orders;
mod sets;

pub use orders::{Done, Order};
pub use sets::SetChange;

use crate::config::{Config, PickUpTcp};
use crate::datapath::{DatapathError, HeldFrames, PacketSocket, wait_for_programs};
use crate::error::one_line;
use crate::firewall::compile::CompileError;
use crate::firewall::ledger::Ledger;
use crate::firewall::live_sets::LiveSets;
use crate::host::{HostChanges, HostError, HostEvent, Netlink, PortSet};
use crate::live::Live;
use crate::plan::{self, FirewallPlan, NatPlan, Plan, PlanError};
use crate::unreachable::Budget;
use crate::waiting::Waiting;
use forwarder_ebpf::abi::Control;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::{MissedTickBehavior, interval};

/// How often counters are read, ports looked at, stale neighbours checked.
const TICK: Duration = Duration::from_secs(1);
/// How often what could not be attached is tried again, and the kernel's forwarding looked at, in ticks.
const RETRY_TICKS: u64 = 5;

/// Why the loop ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The host cannot be asked, or does not take a change.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The config does not fit the host.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel does not take what the datapath is told.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A helping thread ended before its time.
    #[error("a thread of the controller has failed")]
    Thread(#[from] tokio::task::JoinError),
    /// SIGHUP cannot be caught.
    #[error("cannot catch SIGHUP")]
    Signal(#[source] std::io::Error),
    /// The control socket broke.
    #[error("the control socket broke")]
    Socket(#[source] std::io::Error),
    /// The firewall's rules do not fit.
    #[error(transparent)]
    Firewall(#[from] CompileError),
    /// Not one interface can be served.
    #[error("no interface can be served: {0}")]
    NothingServed(String),
}

/// The loop's own state.
#[derive(Debug)]
pub struct Controller {
    live: Arc<Live>,
    config: Config,
    path: Option<PathBuf>,
    firewall: Option<FirewallPlan>,
    ledger: Ledger,
    live_sets: LiveSets,
    netlink: Netlink,
    changes: HostChanges,
    control: Control,
    nat: Option<NatPlan>,
    host_ports: Option<PortSet>,
    pick_up_until: Option<Instant>,
    said: BTreeSet<String>,
    waiting: Waiting,
    answers: Budget,
    socket: PacketSocket,
    ticks: u64,
}

impl Controller {
    /// Around a datapath that is loaded. Nothing is served before [`Controller::apply`].
    ///
    /// # Errors
    /// When the datapath cannot be read, or there is no packet socket.
    pub fn new(
        live: Arc<Live>,
        (mut config, path): (Config, Option<PathBuf>),
        (ledger, mut live_sets): (Ledger, LiveSets),
        netlink: Netlink,
        changes: HostChanges,
    ) -> Result<Self, ControllerError> {
        let control = live.datapath().read_control()?;
        for notice in live_sets.apply(&mut config.firewall.sets) {
            tracing::info!("{notice}");
        }
        let socket = PacketSocket::open()?;
        let pick_up = config.flows.pick_up_tcp == PickUpTcp::AfterStart && !live.datapath().is_adopted();
        let answers = Budget::new(config.icmp.errors_per_second_per_cpu, Instant::now());
        let pick_up_until = pick_up.then(|| Instant::now() + config.timeouts.tcp_established);
        Ok(Self {
            live,
            config,
            path,
            firewall: None,
            ledger,
            live_sets,
            netlink,
            changes,
            control,
            nat: None,
            host_ports: None,
            pick_up_until,
            said: BTreeSet::new(),
            waiting: Waiting::default(),
            answers,
            socket,
            ticks: 0,
        })
    }

    /// Works until it is dropped.
    ///
    /// # Errors
    /// When waiting itself fails. What fails on the way is logged and tried again.
    pub async fn work(&mut self, mut held: HeldFrames, mut orders: Receiver<Order>) -> Result<(), ControllerError> {
        let mut hangup = signal(SignalKind::hangup()).map_err(ControllerError::Signal)?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.netlink.next_event() => self.handle_event(event).await,
                Some(order) = orders.recv() => self.handle_order(order).await,
                _ = hangup.recv() => drop(self.reload().await),
                _ = tick.tick() => self.handle_tick().await,
                frame = held.next_frame() => self.handle_held(frame?).await,
            }
        }
    }

    /// Puts the host back as it was, apart from the datapath.
    ///
    /// # Errors
    /// When a sysctl cannot be put back.
    pub fn restore_host(&mut self) -> Result<(), HostError> {
        self.changes.restore()
    }

    async fn handle_event(&mut self, event: HostEvent) {
        match event {
            HostEvent::Routes => self.bump_epoch(),
            HostEvent::Neighbour { ifindex, address, .. } => {
                self.bump_epoch();
                self.handle_neighbour((ifindex, address)).await;
            }
            HostEvent::Links | HostEvent::Addresses | HostEvent::Everything => {
                self.apply_again().await;
                self.send_all_that_can_be();
            }
        }
    }

    async fn handle_tick(&mut self) {
        self.ticks += 1;
        let slots = self.live.view().slots;
        let (read, refused) = {
            let mut meter = self.live.meter();
            (meter.tick(self.live.datapath(), slots), meter.newly_refused())
        };
        self.log_failure("read the counters", read);
        if refused > 0 {
            self.live.set_pressure(true);
        }
        self.refresh_limits();
        let ports = self.refresh_host_ports().await;
        self.log_failure("keep the host's own ports", ports);
        if self.pick_up_until.is_some_and(|until| Instant::now() >= until) {
            self.pick_up_until = None;
            self.control.loose_tcp = 0;
            let written = self.live.datapath().write_control(&self.control);
            self.log_failure("end the picking up of running TCP connections", written);
        }
        self.give_up_waiting();
        self.probe_stale_next_hops().await;
        if self.ticks.is_multiple_of(RETRY_TICKS) {
            self.keep_forwarding();
            if !self.live.view().not_served.is_empty() {
                self.apply_again().await;
            }
        }
    }

    /// Plans and applies; what fails is logged.
    async fn apply_again(&mut self) {
        let applied = self.apply().await;
        self.log_failure("follow a change of the host", applied);
    }

    /// Plans on the host as it is now, and tells the datapath.
    ///
    /// # Errors
    /// When the plan fails or the datapath takes nothing. An interface that cannot be served is no error.
    pub async fn apply(&mut self) -> Result<(), ControllerError> {
        let plan = plan::plan(&self.config, &self.netlink.facts().await?)?;
        for notice in &plan.notices {
            self.say_once(notice);
        }
        self.apply_firewall(&plan)?;
        self.apply_nat(&plan).await?;
        self.apply_interfaces(&plan)?;
        self.apply_control(&plan).await
    }

    /// Fails unless at least one interface is served, or there is none yet that could be.
    ///
    /// # Errors
    /// When every interface that is there refused.
    pub fn require_service(&self) -> Result<(), ControllerError> {
        let view = self.live.view();
        let refused: Vec<_> = view.not_served.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        if view.served.is_empty() && !refused.is_empty() {
            return Err(ControllerError::NothingServed(refused.join("; ")));
        }
        Ok(())
    }

    /// The bank that does not count is filled; the switch comes with `apply_control`.
    async fn apply_nat(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        if plan.nat.host_addresses {
            self.changes.apply_local_port_range(plan.nat.local_port_range)?;
        }
        if self.nat.as_ref() != Some(&plan.nat) {
            let bank = 1 - (self.control.nat_bank & 1);
            self.live.datapath().write_nat(bank, &plan.nat.rules, &plan.nat.addresses)?;
            self.control.nat_bank = bank;
            self.nat = Some(plan.nat.clone());
            self.host_ports = None;
        }
        self.refresh_host_ports().await
    }

    /// The switches first, and the epoch when no program runs any more that has seen the old ones: or one that judged by those
    /// could mark its flow as judged by the new.
    async fn apply_control(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let planned = plan.control(self.live.ticks_per_second());
        let loose_tcp = if self.pick_up_until.is_some() { 1 } else { planned.loose_tcp };
        let Control { epoch, nat_bank, unanswered_past, .. } = self.control;
        self.control = Control { epoch, nat_bank, loose_tcp, unanswered_past, ..planned };
        self.live.set_limits_sources(planned.source_new_per_second != 0 || planned.source_flows != 0);
        self.live.datapath().write_control(&self.control)?;
        tokio::task::spawn_blocking(wait_for_programs).await?;
        self.control.epoch = epoch.wrapping_add(1);
        self.live.datapath().write_control(&self.control)?;
        let mut view = self.live.view();
        view.epoch = self.control.epoch;
        view.ports = u32::from(*plan.ports.end()) - u32::from(*plan.ports.start()) + 1;
        Ok(())
    }

    /// Every flow asks the FIB again with its next packet.
    fn bump_epoch(&mut self) {
        self.control.epoch = self.control.epoch.wrapping_add(1);
        let written = self.live.datapath().write_control(&self.control);
        self.live.view().epoch = self.control.epoch;
        self.log_failure("have flows ask for their routes again", written);
    }

    /// Ports that the host listens on or uses are not NAT's, where NAT uses an address of the host's.
    async fn refresh_host_ports(&mut self) -> Result<(), ControllerError> {
        let ports = match &self.nat {
            // Some milliseconds of reading in /proc, so not on the loop's thread.
            Some(nat) if nat.host_addresses => tokio::task::spawn_blocking(PortSet::read).await??,
            _ => PortSet::default(),
        };
        if self.host_ports.as_ref() != Some(&ports) {
            self.live.datapath().write_host_ports(ports.words())?;
            self.host_ports = Some(ports);
        }
        Ok(())
    }

    fn say_once(&mut self, notice: &str) {
        if self.said.insert(notice.to_owned()) {
            tracing::info!("{notice}");
        }
    }

    fn log_failure<E: std::error::Error>(&self, what: &str, result: Result<(), E>) {
        if let Err(error) = result {
            tracing::error!("cannot {what}: {}", one_line(&error));
        }
    }
}
