//! What `forwarder status` says: one value, as JSON between controller and command, and as text for people.

pub mod text;

use crate::datapath::Mode;
use crate::flowlog::destination::DestinationStatus;
use crate::flows::sweep::Census;
use crate::measure::latency::ProcessingTime;
use crate::measure::rates::{Count, Meter, Traffic};
use forwarder_ebpf::conntrack::State;
use forwarder_ebpf::verdict::{Drop, Pass};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the instance.
    pub instance: String,
    /// Version of the controller.
    pub version: String,
    /// Since the controller started, seconds.
    pub uptime_seconds: f64,
    /// The datapath was running already when the controller started.
    pub adopted: bool,
    /// Moves with every change of routes, neighbours, addresses, links or policy.
    pub epoch: u32,
    /// Interfaces that are served.
    pub interfaces: Vec<Interface>,
    /// Configured interfaces that are not, and why.
    pub not_served: BTreeMap<String, String>,
    /// All interfaces together.
    pub total: Total,
    /// Drops of all interfaces by reason, those that happened.
    pub drops: BTreeMap<String, Reason>,
    /// Frames left to the host by reason, those that happened.
    pub passed: BTreeMap<String, Reason>,
    /// The flow tables.
    pub flows: Flows,
    /// Use of the public addresses.
    pub public_addresses: Vec<PublicAddress>,
    /// Destinations of flow logs, and what has become of their records.
    pub flow_logs: Vec<DestinationStatus>,
    /// Time from a frame's entry into the datapath to its verdict, over the last minute.
    pub processing_time: ProcessingTime,
}

/// One interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// inside, outside or both.
    pub role: String,
    /// native or generic.
    pub mode: String,
    /// MTU, bytes of IP packet.
    pub mtu: u32,
    /// What came in.
    #[serde(rename = "in")]
    pub incoming: Traffic,
    /// What went out, ICMP errors of our own not included.
    #[serde(rename = "out")]
    pub outgoing: Traffic,
    /// Drops of frames that came in here, by reason.
    pub drops: BTreeMap<String, Count>,
    /// Frames that came in here and were left to the host, by reason.
    pub passed: BTreeMap<String, Count>,
}

/// Sums over all interfaces.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Total {
    /// What came in.
    #[serde(rename = "in")]
    pub incoming: Traffic,
    /// What went out.
    #[serde(rename = "out")]
    pub outgoing: Traffic,
}

/// How often something happened, and what it means.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reason {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// One sentence.
    pub text: String,
}

/// The flow tables.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flows {
    /// Connections, both families.
    pub total: u64,
    /// IPv4 connections.
    pub ipv4: u64,
    /// Room for IPv4 connections.
    pub ipv4_max: u64,
    /// How much of it is taken, by connections on their way out too, which the sweeper's next pass frees. When there is none
    /// left, new flows are dropped as `table_full`, however few connections there are.
    pub ipv4_taken: u64,
    /// IPv6 connections.
    pub ipv6: u64,
    /// Room for IPv6 connections.
    pub ipv6_max: u64,
    /// How much of it is taken.
    pub ipv6_taken: u64,
    /// Connections that began, per second, between the last two passes of the sweeper.
    pub new_per_second: f64,
    /// By protocol and state.
    pub states: BTreeMap<String, BTreeMap<String, u64>>,
    /// How long the sweeper's last pass took, milliseconds.
    pub sweep_ms: f64,
    /// Passes of the sweeper that the limits for new flows go by: what one has found, the datapath is told within a second.
    pub sweeps: u32,
}

/// A flow table's room, in connections.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// For how many it is made.
    pub most: u64,
    /// How many have some of it, those on their way out included.
    pub taken: u64,
}

/// Use of one public address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address.
    pub address: String,
    /// Connections translated to it.
    pub flows: u64,
    /// Distinct ports in use, over all remotes. One remote can have as many connections as there are ports.
    pub ports_used: u32,
    /// Ports that NAT may use.
    pub ports: u32,
}

/// A served interface, as the controller knows it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// inside, outside or both.
    pub role: &'static str,
    /// Index in the counters.
    pub slot: u8,
    /// How XDP is attached.
    pub mode: Mode,
    /// MTU, bytes of IP packet.
    pub mtu: u32,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// Primary IPv4 and global IPv6 address.
    pub addresses: (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>),
}

/// Reads an interface's part out of the meter.
pub fn interface(served: &Served, meter: &Meter) -> Interface {
    let drops = meter.drops(served.slot).into_iter().map(|(reason, count)| (reason.name().to_owned(), count));
    let passed = meter.passes(served.slot).into_iter().map(|(reason, count)| (reason.name().to_owned(), count));
    Interface {
        name: served.name.clone(),
        ifindex: served.ifindex,
        role: served.role.to_owned(),
        mode: served.mode.name().to_owned(),
        mtu: served.mtu,
        incoming: meter.traffic_in(served.slot),
        outgoing: meter.traffic_out(served.slot),
        drops: drops.collect(),
        passed: passed.collect(),
    }
}

/// Sums over interfaces.
pub fn total(interfaces: &[Interface]) -> Total {
    interfaces.iter().fold(Total::default(), |sum, interface| Total {
        incoming: sum.incoming.plus(interface.incoming),
        outgoing: sum.outgoing.plus(interface.outgoing),
    })
}

/// Sums of the drops over interfaces, with their sentences.
pub fn drops(interfaces: &[Interface]) -> BTreeMap<String, Reason> {
    let text = |name: &str| Drop::ALL.iter().find(|reason| reason.name() == name).map_or("", |reason| reason.text());
    sum_reasons(interfaces.iter().map(|interface| &interface.drops), text)
}

/// Sums of the passes over interfaces, with their sentences.
pub fn passed(interfaces: &[Interface]) -> BTreeMap<String, Reason> {
    let text = |name: &str| Pass::ALL.iter().find(|reason| reason.name() == name).map_or("", |reason| reason.text());
    sum_reasons(interfaces.iter().map(|interface| &interface.passed), text)
}

fn sum_reasons<'a>(
    of: impl Iterator<Item = &'a BTreeMap<String, Count>>,
    text: impl Fn(&str) -> &'static str,
) -> BTreeMap<String, Reason> {
    let mut sums: BTreeMap<String, Reason> = BTreeMap::new();
    for (name, count) in of.flatten() {
        let sum =
            sums.entry(name.clone()).or_insert_with(|| Reason { text: text(name).to_owned(), ..Reason::default() });
        sum.packets += count.packets;
        sum.bytes += count.bytes;
    }
    sums
}

/// The census as people read it, with the room of the tables for IPv4 and IPv6, and the passes that limits go by.
pub fn flows(census: &Census, [ipv4, ipv6]: [Room; 2], sweeps: u32) -> Flows {
    let mut states: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ((protocol, state), count) in &census.states {
        let of = states.entry(crate::flows::filter::protocol_name(*protocol)).or_default();
        of.insert(State::name(*state).to_owned(), *count);
    }
    Flows {
        total: census.flows4 + census.flows6,
        ipv4: census.flows4,
        ipv4_max: ipv4.most,
        ipv4_taken: ipv4.taken,
        ipv6: census.flows6,
        ipv6_max: ipv6.most,
        ipv6_taken: ipv6.taken,
        new_per_second: census.new_per_second,
        states,
        sweep_ms: census.took.as_secs_f64() * 1e3,
        sweeps,
    }
}
