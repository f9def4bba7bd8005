//! Two machines and whatever lies between them: a generator, and a reflector that sends every frame back.
//!
//! ```text
//! generate --- interface ===> [the network, a forwarder in it] ===> interface --- reflect
//!     \----------------- one TCP connection, the control -----------------------/
//! ```
//!
//! Searched are the highest rates at which nothing is lost on the way there and back (NDR), and at which no more than 0.5 %
//! is (PDR); then round trips at shares of the latter. On EC2 a trial in which an allowance counter of ENA moved has been
//! throttled by EC2 and says nothing of the forwarder; rows with such trials say so.
//!
//! `local` does it on one machine: two namespaces, a device between them, the reflector in a process of its own.

mod control;
mod host;
mod search;

use crate::lab::{Device, FlowTable, Lab};
use crate::report::Table;
use anyhow::{Context, Result};
use forwarder_kit::run::{PATIENCE, Running, wait_until};
use forwarder_kit::supervise;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Where the reflector listens unless told otherwise.
const CONTROL_PORT: u16 = 4455;

/// Which part to play.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    role: Role,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Role {
    /// Send back what a generator sends; for one generator after another
    Reflect(Reflect),
    /// Measure the way to a reflector and back
    Generate(Generate),
    /// Both on this machine, in namespaces with a device between them
    Local(Local),
}

/// `two-host reflect`.
#[derive(Clone, Debug, clap::Args)]
struct Reflect {
    /// Interface that the load comes by
    #[arg(long)]
    interface: String,
    /// Where to be told what to do
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, CONTROL_PORT)))]
    listen: SocketAddr,
    /// End with the first generator
    #[arg(long)]
    once: bool,
}

/// `two-host generate`.
#[derive(Clone, Debug, clap::Args)]
struct Generate {
    /// Interface that the load leaves by
    #[arg(long)]
    interface: String,
    /// Address and port of the reflector's control
    #[arg(long)]
    control: SocketAddr,
    /// Source address of the load: this host's
    #[arg(long)]
    client: Ipv4Addr,
    /// Destination address of the load: the reflector's
    #[arg(long)]
    server: Ipv4Addr,
    /// The address that the device between gives to the client
    #[arg(long)]
    public: Option<Ipv4Addr>,
    #[command(flatten)]
    load: Load,
}

/// `two-host local`.
#[derive(Clone, Debug, clap::Args)]
struct Local {
    /// Device between the two
    #[arg(long, value_enum, default_value = "forwarder")]
    device: Device,
    #[command(flatten)]
    load: Load,
}

/// What is sent.
#[derive(Clone, Debug, clap::Args)]
struct Load {
    /// Flows; they differ in ports
    #[arg(long, default_value_t = 1_000)]
    flows: u32,
    /// Bytes of a frame, without frame check sequence
    #[arg(long, default_value_t = 60)]
    bytes: usize,
    /// Length of a trial, milliseconds
    #[arg(long, default_value_t = 1000)]
    trial_ms: u64,
    /// CPU of the generator
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// Plays the part. A reflector has no table.
///
/// # Errors
/// When something cannot be set up, or the other side goes.
pub fn run(options: &Options) -> Result<Option<Table>> {
    match &options.role {
        Role::Reflect(reflect) => {
            control::serve(&reflect.interface, reflect.listen, reflect.once)?;
            Ok(None)
        }
        Role::Generate(generate) => measure(generate, "network").map(Some),
        Role::Local(local) => run_local(local).map(Some),
    }
}

fn run_local(local: &Local) -> Result<Table> {
    let lab = Lab::without_sinks(local.device, FlowTable::roomy(local.load.flows))?;
    let (client, server) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2));
    let own = std::env::current_exe().context("cannot find the own executable")?;
    let mut command = lab.server.command(&own.to_string_lossy());
    command.arg(supervise::INNER).args(["two-host", "reflect", "--interface", "s0", "--once"]);
    let _reflector = Running::start(&mut command)?;
    let control = SocketAddr::from((server, CONTROL_PORT));
    let generate = Generate {
        interface: "c0".to_owned(),
        control,
        client,
        server,
        public: local.device.translates().then_some(Ipv4Addr::new(10, 2, 0, 1)),
        load: local.load.clone(),
    };
    lab.client.enter(|| {
        wait_until("the reflector", PATIENCE, || {
            Ok(TcpStream::connect_timeout(&control, Duration::from_secs(1)).is_ok())
        })?;
        measure(&generate, local.device.name())
    })
}

fn measure(generate: &Generate, path: &str) -> Result<Table> {
    eprintln!("two-host: this takes up to about {} s", search::most_expected(&generate.load).as_secs());
    let mut pair = search::Pair::connect(generate)?;
    let mut table = Table::new("two-host");
    pair.measure_rates(path, &mut table)?;
    pair.measure_latency(path, &mut table)?;
    Ok(table)
}
