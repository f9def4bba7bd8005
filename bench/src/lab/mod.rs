//! Clients, device under test and servers: three namespaces in a row, and what the generator has to know of them.
//!
//! ```text
//! [client] c0 10.1.0.2 --- 10.1.0.1 r0 [device] r1 10.2.0.1 --- s0 10.2.0.2 [server]
//!             fd00:a::2 --- fd00:a::1       fd00:b::1 --- fd00:b::2
//! behind them, as routers: clients 10.64.0.0/16, fd00:1::/96      servers 198.18.0.0/15, fd00:2::/96
//! ```
//!
//! Neighbours are static and nobody solicits routers: nothing but the load is on the wire. Sinks at c0 and s0 count and
//! drop what the generator made, s0 also sends UDP port 7 back; everything else is for the sockets of the namespaces.

mod device;

pub use device::{AtWork, Conntrack, Device, FlowTable, Orders};

use crate::load::{Load, Program, Slot};
use anyhow::{Context, Result};
use forwarder_ebpf::abi::{LoadConfig, LoadStation};
use forwarder_kit::sniff::mac;
use forwarder_kit::{Netns, topology};
use nix::net::if_::if_nametoindex;

/// IP version of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// IPv4, translated by devices that do.
    #[value(name = "4")]
    V4,
    /// IPv6, never translated.
    #[value(name = "6")]
    V6,
}

impl Family {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Which ways the load goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Directions {
    /// From clients to servers.
    One,
    /// Both, in turn.
    Both,
}

impl Directions {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "out",
            Self::Both => "both",
        }
    }
}

/// The namespaces, with one device at work. Fields are dropped in their order: programs go before what they run on.
#[derive(Debug)]
pub struct Lab {
    /// Generator and sinks.
    pub load: Load,
    /// What is under test.
    pub device: Device,
    /// The device, and what it changed on the machine.
    pub at_work: AtWork,
    /// The clients.
    pub client: Netns,
    /// Where the device works.
    pub dut: Netns,
    /// The servers.
    pub server: Netns,
    /// What a reader of its figures must know.
    pub caution: Option<String>,
    /// How large its table is.
    pub table: FlowTable,
    stations: [LoadStation; 2],
    bare: [LoadStation; 2],
    bare_inside: u32,
}

impl Lab {
    /// Builds everything and sets a device to work.
    ///
    /// # Errors
    /// The step that failed.
    pub fn new(device: Device, table: FlowTable) -> Result<Self> {
        Self::build(device, table, true, &Orders::default())
    }

    /// The same with an appliance that is told more than the size of its table.
    ///
    /// # Errors
    /// The step that failed.
    pub fn with_orders(table: FlowTable, orders: &Orders) -> Result<Self> {
        Self::build(Device::Forwarder, table, true, orders)
    }

    /// The same without sinks: clients' and servers' ends are for other processes.
    ///
    /// # Errors
    /// The step that failed.
    pub fn without_sinks(device: Device, table: FlowTable) -> Result<Self> {
        Self::build(device, table, false, &Orders::default())
    }

    fn build(device: Device, table: FlowTable, sinks: bool, orders: &Orders) -> Result<Self> {
        let (client, dut, server) = (quiet("client")?, quiet("device")?, quiet("server")?);
        topology::link((&client, "c0"), (&dut, "r0"), 1500, 1)?;
        topology::link((&dut, "r1"), (&server, "s0"), 1500, 1)?;
        let (c0, r0, r1, s0) = (mac(&client, "c0")?, mac(&dut, "r0")?, mac(&dut, "r1")?, mac(&server, "s0")?);
        address(&client, "c0", (1, "a", 2), (r0, c0))?;
        address(&server, "s0", (2, "b", 2), (r1, s0))?;
        address(&dut, "r0", (1, "a", 1), (c0, r0))?;
        address(&dut, "r1", (2, "b", 1), (s0, r1))?;
        routes(&client, &dut, &server)?;
        let load = attach(device, [&client, &dut, &server], sinks)?;
        let mut lab = Self {
            load,
            device,
            table,
            caution: None,
            at_work: AtWork::default(),
            stations: [LoadStation { to: r0, from: c0 }, LoadStation { to: r1, from: s0 }],
            bare: [LoadStation { to: s0, from: r1 }, LoadStation { to: c0, from: r0 }],
            bare_inside: dut.enter(|| index("r0"))?,
            client,
            dut,
            server,
        };
        lab.at_work = device.set_to_work(&lab.dut, table, orders)?;
        Ok(lab)
    }

    /// Has the appliance's controller be killed, and another with these orders take over its datapath, as it is.
    ///
    /// # Errors
    /// When the device is no appliance, or the controller does not start.
    pub fn replace_controller(&mut self, orders: &Orders) -> Result<()> {
        let appliance = self.at_work.appliance.as_mut().context("this device has no controller")?;
        appliance.kill9()?;
        appliance.write_config(&device::forwarder_config(self.table, orders))?;
        appliance.start_again()
    }

    /// The load for so many flows in one direction; what differs is for the caller to change. Counts begin at 0 when it is
    /// given to [`Load::configure`].
    pub fn config(&self, family: Family, flows: u32) -> LoadConfig {
        LoadConfig {
            flows,
            step: step(flows),
            first_flow: 0,
            family: if family == Family::V6 { 6 } else { 4 },
            directions: 1,
            imix: 0,
            translated: u32::from(family == Family::V4 && self.device.translates()),
            hops: if self.device.routes() { 63 } else { 64 },
            stamp_mask: u32::MAX,
            interval_ns: 0,
            one_host: 0,
            reflect: 0,
            syn: 0,
            zero: 0,
            clients: [10, 64, 0, 0],
            servers: [198, 18, 0, 1],
            public: [10, 2, 0, 1],
            bare_inside: self.bare_inside,
            stations: self.stations,
            bare: self.bare,
        }
    }
}

/// A step near the golden section of `flows` that has no divisor in common with it: so each flow comes once before any
/// comes again, and neighbours in the order are no neighbours in any other way.
pub fn step(flows: u32) -> u32 {
    fn divisor(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { divisor(b, a % b) }
    }
    let golden = (f64::from(flows) * 0.618_034) as u32;
    (golden.max(1)..=flows.max(1)).find(|step| divisor(flows, *step) == 1).unwrap_or(1)
}

/// A namespace whose interfaces say nothing by themselves.
fn quiet(role: &str) -> Result<Netns> {
    let netns = Netns::new(role)?;
    netns.set_sysctls(&[
        ("net.ipv6.conf.default.router_solicitations", "0"),
        ("net.ipv6.conf.default.addr_gen_mode", "1"),
        ("net.ipv6.conf.default.mldv1_unsolicited_report_interval", "3600000"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
    ])?;
    Ok(netns)
}

/// Addresses of an interface, `(IPv4 net, IPv6 net, host)`, and its only neighbour; MACs are the neighbour's, the own.
fn address(netns: &Netns, interface: &str, net: (u8, &str, u8), macs: ([u8; 6], [u8; 6])) -> Result<()> {
    let (v4, v6, host) = net;
    let other = 3 - host;
    let neighbour = macs.0.map(|byte| format!("{byte:02x}")).join(":");
    netns.ip(&format!("address add 10.{v4}.0.{host}/24 dev {interface}"))?;
    netns.ip(&format!("address add fd00:{v6}::{host}/64 nodad dev {interface}"))?;
    for address in [format!("10.{v4}.0.{other}"), format!("fd00:{v6}::{other}")] {
        netns.ip(&format!("neigh replace {address} lladdr {neighbour} dev {interface} nud permanent"))?;
    }
    Ok(())
}

fn routes(client: &Netns, dut: &Netns, server: &Netns) -> Result<()> {
    dut.ip("route add 10.64.0.0/16 via 10.1.0.2")?;
    dut.ip("route add 198.18.0.0/15 via 10.2.0.2")?;
    dut.ip("-6 route add fd00:1::/96 via fd00:a::2")?;
    dut.ip("-6 route add fd00:2::/96 via fd00:b::2")?;
    for (netns, v4, v6) in [(client, 1, "a"), (server, 2, "b")] {
        netns.ip(&format!("route add default via 10.{v4}.0.1"))?;
        netns.ip(&format!("-6 route add default via fd00:{v6}::1"))?;
    }
    Ok(())
}

/// Programs on their interfaces. What only drops has its sinks where frames enter the device.
fn attach(device: Device, [client, dut, server]: [&Netns; 3], sinks: bool) -> Result<Load> {
    let mut load = Load::open()?;
    let ends = if device == Device::Drop { [(dut, "r0"), (dut, "r1")] } else { [(client, "c0"), (server, "s0")] };
    for (netns, name) in ends.into_iter().filter(|_| sinks) {
        netns.enter(|| load.attach(Program::Sink, index(name)?))?;
    }
    let slots = [
        (Slot::Client, client, "c0"),
        (Slot::Server, server, "s0"),
        (Slot::Outside, dut, "r1"),
        (Slot::Inside, dut, "r0"),
    ];
    for (slot, netns, name) in slots {
        netns.enter(|| load.lead(slot, index(name)?))?;
    }
    if device == Device::Bare {
        for name in ["r0", "r1"] {
            dut.enter(|| load.attach(Program::Bare, index(name)?))?;
        }
    }
    Ok(load)
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("no interface {name}"))
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn every_flow_comes_once_before_any_comes_again() {
        for flows in [1, 2, 3, 4, 6, 1000, 1024, 100_000] {
            let (step, mut flow) = (step(flows), 0);
            let mut seen = vec![false; flows as usize];
            for _ in 0..flows {
                assert!(!std::mem::replace(&mut seen[flow as usize], true), "{flows} flows by {step}");
                flow += step;
                flow -= if flow >= flows { flows } else { 0 };
            }
            assert_eq!(flow, 0);
        }
    }
}
