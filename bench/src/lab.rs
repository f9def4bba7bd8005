//! Client, device under test and server, three namespaces in a row; and the devices.
//!
//! ```text
//! client c0 10.1.0.2 --- 10.1.0.1 r0 [device] r1 10.2.0.1 --- s0 10.2.0.2 server (and up: more addresses, same station)
//! ```
//!
//! Neighbours are static and IPv6 is off: nothing but the load is on the wire.

use crate::load::Load;
use anyhow::{Context, Result, bail};
use forwarder_ebpf::abi::{LOAD_FLOWS_PER_DESTINATION, LoadConfig};
use forwarder_kit::sniff::mac;
use forwarder_kit::{Appliance, Netns, topology};
use nix::net::if_::if_nametoindex;
use std::fs;
use std::path::Path;

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// Nothing: frames are dropped where they enter. The generator's own cost.
    Drop,
    /// An XDP program that redirects and does nothing else: the limit.
    Bare,
    /// forwarder, everything on.
    Forwarder,
    /// The kernel's forwarding, without conntrack.
    Kernel,
    /// The kernel with an nftables masquerade rule.
    Nft,
}

impl Device {
    /// All, in the order they are measured.
    pub const ALL: [Self; 5] = [Self::Drop, Self::Bare, Self::Forwarder, Self::Kernel, Self::Nft];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "generate and drop",
            Self::Bare => "bare redirect",
            Self::Forwarder => "forwarder",
            Self::Kernel => "kernel forwarding",
            Self::Nft => "nft masquerade",
        }
    }

    fn translates(self) -> bool {
        matches!(self, Self::Forwarder | Self::Nft)
    }
}

/// The namespaces, with one device at work.
#[derive(Debug)]
pub struct Lab {
    /// Generator and sink.
    pub load: Load,
    _appliance: Option<Appliance>,
    _conntrack: Option<Conntrack>,
    _client: Netns,
    _device: Netns,
    _server: Netns,
}

impl Lab {
    /// Builds everything and sets a device to work, ready for `flows` flows.
    ///
    /// # Errors
    /// The step that failed.
    pub fn new(device: Device, flows: u32) -> Result<Self> {
        let (client, dut, server) = (Netns::new("client")?, Netns::new("device")?, Netns::new("server")?);
        for netns in [&client, &dut, &server] {
            let off = [("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1")];
            netns.set_sysctls(&off)?;
        }
        topology::link((&client, "c0"), (&dut, "r0"), 1500, 1)?;
        topology::link((&dut, "r1"), (&server, "s0"), 1500, 1)?;
        client.ip("address add 10.1.0.2/24 dev c0")?;
        dut.ip("address add 10.1.0.1/24 dev r0")?;
        dut.ip("address add 10.2.0.1/24 dev r1")?;
        server.ip("address add 10.2.0.2/24 dev s0")?;
        let (c0, r0, r1, s0) = (mac(&client, "c0")?, mac(&dut, "r0")?, mac(&dut, "r1")?, mac(&server, "s0")?);
        fix_neighbours(&dut, c0, s0, flows)?;
        let expected = if device.translates() { [10, 2, 0, 1] } else { [10, 1, 0, 2] };
        let mut load = Load::open(&LoadConfig {
            flows,
            source: [10, 1, 0, 2],
            destination: [10, 2, 0, 2],
            expected,
            to: r0,
            from: c0,
            bare_to: s0,
            bare_from: r1,
        })?;
        client.enter(|| load.send_by(index("c0")?))?;
        match device {
            Device::Drop => dut.enter(|| load.attach_sink(index("r0")?))?,
            _ => server.enter(|| load.attach_sink(index("s0")?))?,
        }
        let (appliance, conntrack) = set_to_work(device, &dut, &mut load, flows)?;
        Ok(Self { load, _appliance: appliance, _conntrack: conntrack, _client: client, _device: dut, _server: server })
    }
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("no interface {name}"))
}

fn fix_neighbours(dut: &Netns, client: [u8; 6], server: [u8; 6], flows: u32) -> Result<()> {
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    dut.ip(&format!("neigh replace 10.1.0.2 lladdr {} dev r0 nud permanent", text(client)))?;
    for block in 0..=flows / LOAD_FLOWS_PER_DESTINATION {
        dut.ip(&format!("neigh replace 10.2.0.{} lladdr {} dev r1 nud permanent", 2 + block, text(server)))?;
    }
    Ok(())
}

fn set_to_work(
    device: Device,
    dut: &Netns,
    load: &mut Load,
    flows: u32,
) -> Result<(Option<Appliance>, Option<Conntrack>)> {
    let forward = [("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.all.rp_filter", "0")];
    match device {
        Device::Drop => {}
        Device::Bare => dut.enter(|| load.attach_bare(index("r0")?, index("r1")?))?,
        Device::Kernel => dut.set_sysctls(&forward)?,
        Device::Nft => {
            dut.set_sysctls(&forward)?;
            let conntrack = Conntrack::sized_for(flows)?;
            dut.run("nft", "add table ip nat")?;
            dut.run("nft", "add chain ip nat post { type nat hook postrouting priority 100 ; }")?;
            dut.run("nft", "add rule ip nat post oifname r1 masquerade")?;
            return Ok((None, Some(conntrack)));
        }
        Device::Forwarder => {
            let interface = |name, role| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n");
            // As large as the flows need and no larger, as conntrack's table is.
            let max = flows.next_power_of_two().max(1 << 10);
            let (inside, outside) = (interface("r0", "inside"), interface("r1", "outside"));
            let config = format!("{inside}{outside}[flows]\nmax = {max}\nmax_ipv6 = 1024\n");
            return Ok((Some(Appliance::start_in(dut, &config)?), None));
        }
    }
    Ok((None, None))
}

/// The size of the kernel's connection table, which all namespaces share; as it was when dropped.
#[derive(Debug)]
struct Conntrack {
    before: Vec<(&'static str, String)>,
}

impl Conntrack {
    fn sized_for(flows: u32) -> Result<Self> {
        let wanted = [
            ("/sys/module/nf_conntrack/parameters/hashsize", flows.next_power_of_two().max(65_536)),
            ("/proc/sys/net/netfilter/nf_conntrack_max", flows + flows / 4 + 65_536),
        ];
        let mut conntrack = Self { before: Vec::new() };
        for (path, value) in wanted {
            if !Path::new(path).exists() {
                bail!("{path} is not there: conntrack cannot be sized for {flows} flows");
            }
            let before = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            fs::write(path, value.to_string()).with_context(|| format!("cannot write {value} to {path}"))?;
            conntrack.before.push((path, before));
        }
        Ok(conntrack)
    }
}

impl Drop for Conntrack {
    fn drop(&mut self) {
        for (path, before) in &self.before {
            // Nothing can be done in a drop; the next run sets it anyway.
            let _ = fs::write(path, before.trim());
        }
    }
}
