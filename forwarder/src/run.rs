//! `forwarder run`: everything from the lock to the last pin removed.

use crate::config::Config;
use crate::controller::{Controller, ControllerError, Order};
use crate::datapath::{Datapath, HeldFrames, LoadOptions};
use crate::error::one_line;
use crate::firewall::{self, ledger::Ledger, live_sets::LiveSets};
use crate::flowlog::{FlowLogs, Home};
use crate::host::{self, Bpffs, HostChanges, Lock, Netlink};
use crate::live::Live;
use crate::plan::{self, Sizes};
use crate::state::StateDirectory;
use crate::{api, config, sweeper};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;

/// Interface indexes that can be served: all that fit a flow entry.
const IFINDEXES: u32 = 1 << 16;

/// Waits for SIGTERM or SIGINT, from this call on.
///
/// # Errors
/// When the signals cannot be caught.
pub fn terminated() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
    })
}

/// What an instance stands on: its lock, its directory, a place for pins.
struct Ground {
    state: StateDirectory,
    bpffs: Bpffs,
    _lock: Lock,
}

/// What is on the host for one instance while it runs.
struct Instance {
    live: Arc<Live>,
    controller: Controller,
    held: HeldFrames,
    orders: Receiver<Order>,
    listener: UnixListener,
}

/// Forwards until `shutdown`, then leaves the host as it was.
///
/// # Errors
/// When it cannot begin, and then nothing is left behind but a datapath that an earlier controller left forwarding; or when
/// the host cannot be put back at the end.
pub async fn run(instance: &str, path: Option<&Path>, shutdown: impl Future<Output = ()>) -> Result<()> {
    let config = config::read(path)?;
    host::require_root()?;
    host::require_kernel()?;
    tracing::info!("configuration: {}", config.origin);
    let lock = Lock::take()?;
    let (state, bpffs) = (StateDirectory::take(instance)?, Bpffs::mount(Path::new(Bpffs::USUAL))?);
    let ground = Ground { state, bpffs, _lock: lock };
    let running = match start(instance, (config, path.map(Path::to_owned)), &ground).await {
        Ok(running) => running,
        Err(error) => {
            if !pins(instance).exists() {
                leave(ground)?;
            }
            return Err(error);
        }
    };
    let Instance { live, mut controller, held, orders, listener } = running;
    host::notify_ready();
    host::notify_status(&format!("forwarding on {} interfaces", live.view().served.len()));
    tracing::info!("forwarding");
    let served = tokio::select! {
        ended = controller.work(held, orders) => ended,
        ended = api::serve(listener, live.clone()) => ended.map_err(ControllerError::Socket),
        () = shutdown => Ok(()),
    };
    host::notify_stopping();
    let ended = end(&live, &mut controller);
    drop((live, controller));
    ended.and(leave(ground))?;
    served.map_err(Into::into)
}

/// Where an instance is pinned.
fn pins(instance: &str) -> PathBuf {
    Path::new(Bpffs::USUAL).join(instance)
}

/// Everything up to the control socket.
async fn start(instance: &str, (config, path): (Config, Option<PathBuf>), ground: &Ground) -> Result<Instance> {
    let changes = HostChanges::open(&ground.state.file(StateDirectory::SYSCTLS))?;
    let netlink = Netlink::open().await?;
    let sizes = plan::plan(&config, &netlink.facts().await?)?.sizes;
    let datapath = load(instance, sizes)?;
    let held = datapath.take_held_frames()?;
    let rule_events = datapath.take_rule_events()?;
    let (requests, sweeps) = crossbeam::channel::bounded(16);
    let (orders, ordered) = tokio::sync::mpsc::channel(16);
    let home = Home { instance, directory: ground.state.directory(), adopted: datapath.is_adopted() };
    let (flow_logs, feed) = FlowLogs::open(&config.flow_logs, home)?;
    let live = Arc::new(Live::new(instance, datapath, config.timeouts.clone(), (requests, flow_logs), orders));
    let ledger = Ledger::open(ground.state.file(StateDirectory::RULES));
    let (live_sets, lost) = LiveSets::open(ground.state.file(StateDirectory::SETS));
    if let Some(lost) = lost {
        tracing::warn!("{lost}");
    }
    let mut controller = Controller::new(live.clone(), (config, path), (ledger, live_sets), netlink, changes)?;
    match begin(&mut controller, &ground.state).await {
        Ok(listener) => {
            // Another version's flow tables are nobody's any more, and large.
            live.datapath().remove_maps(false)?;
            sweeper::start(live.clone(), sweeps, feed).context("cannot start the sweeper")?;
            tokio::spawn(learn_identity(live.clone()));
            tokio::spawn(firewall::log::run(live.clone(), rule_events));
            Ok(Instance { live, controller, held, orders: ordered, listener })
        }
        // A datapath that an earlier controller left goes on forwarding: what is wrong is this start.
        Err(error) if live.datapath().is_adopted() => Err(error),
        Err(error) if live.datapath().is_beside_another() => {
            live.datapath().remove_maps(true)?;
            Err(error)
        }
        Err(error) => {
            if let Err(error) = end(&live, &mut controller) {
                tracing::error!("cannot put everything back: {}", one_line(error.as_ref()));
            }
            Err(error)
        }
    }
}

fn load(instance: &str, sizes: Sizes) -> Result<Datapath> {
    let (entries4, entries6) = (sizes.flows_v4.entries(), sizes.flows_v6.entries());
    let pins = Some(pins(instance));
    let datapath = Datapath::load(&LoadOptions { entries4, entries6, ifindexes: IFINDEXES, pins })?;
    if datapath.is_adopted() {
        tracing::info!("took over the running datapath with its flows and counters");
        if (datapath.flows4.max_entries(), datapath.flows6.max_entries()) != (entries4, entries6) {
            tracing::warn!("the flow tables keep their size until forwarder is stopped and started again");
        }
    }
    Ok(datapath)
}

/// Serves the interfaces and opens the control socket.
async fn begin(controller: &mut Controller, state: &StateDirectory) -> Result<UnixListener> {
    controller.apply().await?;
    controller.require_service()?;
    let socket = state.file(StateDirectory::SOCKET);
    api::listen(&socket).with_context(|| format!("cannot listen at {}", socket.display()))
}

/// No program, pin or sysctl is left. Everything is tried; the first failure is returned.
fn end(live: &Live, controller: &mut Controller) -> Result<()> {
    // In this order, or the kernel would forward by itself in between, untranslated and unfiltered.
    let restored = controller.restore_host();
    let removed = live.datapath().remove();
    live.finish_flow_logs();
    removed?;
    Ok(restored?)
}

/// Asks the instance metadata what records should call things, as long as an interface is served that it did not tell of.
async fn learn_identity(live: Arc<Live>) {
    let unknown = |known: &dyn Fn(&[u8; 6]) -> bool| live.view().served.iter().any(|served| !known(&served.mac));
    live.flow_logs().identity().learn(unknown).await;
}

/// No file and no file system of ours is left.
fn leave(ground: Ground) -> Result<()> {
    let unmounted = ground.bpffs.unmount_if_unused();
    ground.state.remove()?;
    Ok(unmounted?)
}
