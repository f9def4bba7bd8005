//! The devices under test, and how each is set to work.

mod rules;

use anyhow::{Context, Result, ensure};
use forwarder_kit::{Appliance, Netns};
use std::fs;

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
    /// The kernel with an nftables masquerade rule; for IPv6 with a stateful filter.
    Nft,
    /// forwarder with 10,000 firewall rules, the last of which allows.
    ForwarderRules,
    /// The kernel as `Nft`, with the same rules one after another in a chain.
    NftChain,
    /// The kernel as `Nft`, with the same rules as elements of one set.
    NftSet,
}

/// For how many flows a device's table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTable {
    /// Flows that have to fit; both devices that have a table get room for as many, or for 65,536.
    pub flows: u32,
    /// Make it so small that nothing more fits: to see what happens then.
    pub tight: bool,
}

impl FlowTable {
    /// Room for so many flows, as an operator would size it.
    pub fn roomy(flows: u32) -> Self {
        Self { flows: flows.max(1 << 16), tight: false }
    }

    /// Connections that fit the appliance's: as large as the flows need and no larger, as conntrack's table is.
    pub fn connections(self) -> u32 {
        if self.tight { self.flows } else { self.flows.next_power_of_two() }
    }
}

/// What the appliance is told beside the size of its table.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Until an idle UDP flow is forgotten, seconds.
    pub idle_s: u32,
    /// The rest of its configuration.
    pub more: String,
}

impl Default for Orders {
    fn default() -> Self {
        Self { idle_s: PATIENT_S, more: String::new() }
    }
}

/// A device at work. Ends it and puts the machine right when dropped.
#[derive(Debug, Default)]
pub struct AtWork {
    /// The appliance, when that is the device.
    pub appliance: Option<Appliance>,
    _conntrack: Option<Conntrack>,
}

/// Flows must not expire between the rounds of a measurement.
const PATIENT_S: u32 = 900;

impl Device {
    /// Those measured unless told otherwise, in their order.
    pub const USUAL: [Self; 5] = [Self::Drop, Self::Bare, Self::Forwarder, Self::Kernel, Self::Nft];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "generate and drop",
            Self::Bare => "bare redirect",
            Self::Forwarder => "forwarder",
            Self::Kernel => "kernel forwarding",
            Self::Nft => "nft masquerade",
            Self::ForwarderRules => "forwarder, 10,000 rules",
            Self::NftChain => "nft, 10,000 rules in a chain",
            Self::NftSet => "nft, 10,000 rules in a set",
        }
    }

    /// Gives clients its own IPv4 address.
    pub fn translates(self) -> bool {
        !matches!(self, Self::Drop | Self::Bare | Self::Kernel)
    }

    /// Lowers TTL and hop limit.
    pub fn routes(self) -> bool {
        !matches!(self, Self::Drop | Self::Bare)
    }

    /// Is the appliance, with whatever rules.
    pub fn is_forwarder(self) -> bool {
        matches!(self, Self::Forwarder | Self::ForwarderRules)
    }

    /// Knows flows, so that the first packet of each costs more.
    pub fn has_flows(self) -> bool {
        self.translates()
    }

    pub(super) fn set_to_work(self, dut: &Netns, table: FlowTable, orders: &Orders) -> Result<AtWork> {
        match self {
            Self::Drop | Self::Bare => Ok(AtWork::default()),
            Self::Kernel => forward(dut).map(|()| AtWork::default()),
            Self::Nft => Ok(AtWork { _conntrack: Some(nft(dut, table)?), appliance: None }),
            Self::NftChain | Self::NftSet => {
                let conntrack = nft(dut, table)?;
                rules::load(dut, &if self == Self::NftSet { rules::nft_set() } else { rules::nft_chain() })?;
                Ok(AtWork { _conntrack: Some(conntrack), appliance: None })
            }
            Self::Forwarder => at_work(dut, table, orders),
            Self::ForwarderRules => {
                let more = format!("{}{}", orders.more, rules::forwarder());
                at_work(dut, table, &Orders { more, ..orders.clone() })
            }
        }
    }
}

fn at_work(dut: &Netns, table: FlowTable, orders: &Orders) -> Result<AtWork> {
    let appliance = Appliance::start_in(dut, &forwarder_config(table, orders))?;
    Ok(AtWork { appliance: Some(appliance), _conntrack: None })
}

pub(super) fn forwarder_config(table: FlowTable, Orders { idle_s, more }: &Orders) -> String {
    let interface = |name, role| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n");
    let (inside, outside) = (interface("r0", "inside"), interface("r1", "outside"));
    let max = table.connections();
    let timeouts = format!("[timeouts]\nudp = \"{idle_s}s\"\nudp_stream = \"{idle_s}s\"\n");
    format!(
        "{inside}{outside}{timeouts}[flows]\nmax = {max}\nmax_ipv6 = {max}\n\
         [firewall.limits]\nunanswered_percent = 100\n{more}"
    )
}

fn forward(dut: &Netns) -> Result<()> {
    dut.set_sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])
}

fn nft(dut: &Netns, table: FlowTable) -> Result<Conntrack> {
    forward(dut)?;
    let conntrack = Conntrack::sized_for(table)?;
    for command in [
        "add table ip nat",
        "add chain ip nat post { type nat hook postrouting priority 100 ; }",
        "add rule ip nat post oifname r1 masquerade",
        "add table ip6 filter",
        "add chain ip6 filter forward { type filter hook forward priority 0 ; policy drop ; }",
        "add rule ip6 filter forward ct state established,related accept",
        "add rule ip6 filter forward iifname r0 ct state new accept",
    ] {
        dut.run("nft", command)?;
    }
    let patient = PATIENT_S.to_string();
    dut.set_sysctls(&[
        ("net.netfilter.nf_conntrack_udp_timeout", &patient),
        ("net.netfilter.nf_conntrack_udp_timeout_stream", &patient),
    ])?;
    Ok(conntrack)
}

/// Where the size of the kernel's connection table is written: buckets, entries.
const CONNTRACK: [&str; 2] =
    ["/sys/module/nf_conntrack/parameters/hashsize", "/proc/sys/net/netfilter/nf_conntrack_max"];

/// The size of the kernel's connection table, which all namespaces share; as it was when dropped.
#[derive(Clone, Debug)]
pub struct Conntrack {
    before: Vec<(&'static str, String)>,
}

impl Conntrack {
    /// As it is now. Empty when the kernel has no such table.
    pub fn read() -> Self {
        let read = |path: &'static str| Some((path, fs::read_to_string(path).ok()?));
        Self { before: CONNTRACK.into_iter().filter_map(read).collect() }
    }

    fn sized_for(table: FlowTable) -> Result<Self> {
        let conntrack = Self::read();
        ensure!(conntrack.before.len() == CONNTRACK.len(), "the kernel has no connection table whose size can be set");
        let most = if table.tight { table.flows } else { table.flows + table.flows / 4 };
        for (path, value) in CONNTRACK.into_iter().zip([table.flows.next_power_of_two(), most]) {
            fs::write(path, value.to_string()).with_context(|| format!("cannot write {value} to {path}"))?;
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
