//! The loaded datapath with a full flow table, in a namespace with the interfaces, routes and neighbours that it asks about.
//!
//! ```text
//! clients 10.64.0.0/18, 2001:db8:1::/64 --- in0 10.65.0.1 [datapath] out0 203.0.112.1 --- router --- all the world
//! ```
//!
//! Frames are handed to the programs, never received: the far ends of the interfaces are there because veth comes in pairs.

use super::flows::{self, Cycle, EPOCH, Hops};
use anyhow::{Context, Result};
use forwarder::datapath::{Datapath, LoadOptions, Mode};
use forwarder::host::Bpffs;
use forwarder_ebpf::abi::{Control, FlowKey4, IfaceConfig, NatAction, NatRule, NextHop, Shape, Side};
use forwarder_kit::{Netns, packet::protocol};
use nix::net::if_::if_nametoindex;
use std::path::Path;

/// Link-layer address of in0.
pub const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// Link-layer address of out0.
pub const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// Who sends to either of them.
pub const STATION_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// Slot of in0.
pub const INSIDE_SLOT: u8 = 0;
/// Slot of out0.
pub const OUTSIDE_SLOT: u8 = 1;
/// Address of in0: packets to it are the host's.
pub const HOST: [u8; 4] = [10, 65, 0, 1];
/// Public address of flows that begin while it is measured.
const PUBLIC: [u8; 4] = [203, 0, 113, 200];
/// Connections that may begin in one round, on top of those that fill the table.
pub const HEADROOM: u32 = 600;
/// The product's default (`[measure] time_one_in`): everything on.
const TIME_ONE_IN: u32 = 64;
/// Room for this many interface indexes; a fresh namespace counts from 1.
const IFINDEXES: u32 = 64;

/// Gives a fresh namespace the interfaces; `beds` is how many datapaths will be loaded in it.
pub fn furnish(netns: &Netns, beds: usize) -> Result<()> {
    netns.set_sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (name, mac) in [("in0", INSIDE_MAC), ("out0", OUTSIDE_MAC)] {
        netns.ip(&format!("link add name {name} address {} type veth peer name {name}-peer", text(mac)))?;
    }
    for bed in 0..beds {
        netns.ip(&format!("link add name {} type veth peer name {0}-peer", rest_of(bed)))?;
    }
    for name in ["in0-peer", "out0-peer", "in0", "out0"] {
        netns.ip(&format!("link set {name} up"))?;
    }
    let station = text(STATION_MAC);
    for line in [
        "address add 10.65.0.1/24 dev in0".to_owned(),
        "address add 203.0.112.1/24 dev out0".to_owned(),
        "address add 2001:db8:2::1/64 dev out0 nodad".to_owned(),
        format!("neighbour replace 10.65.0.2 lladdr {station} dev in0 nud permanent"),
        format!("neighbour replace 203.0.112.254 lladdr {station} dev out0 nud permanent"),
        format!("neighbour replace 2001:db8:2::fe lladdr {station} dev out0 nud permanent"),
        "route add 10.64.0.0/18 via 10.65.0.2 dev in0".to_owned(),
        "route add default via 203.0.112.254 dev out0".to_owned(),
        "-6 route add default via 2001:db8:2::fe dev out0".to_owned(),
    ] {
        netns.ip(&line)?;
    }
    Ok(())
}

/// The interface that a bed's programs are attached to, and that no frame is handed to.
fn rest_of(bed: usize) -> String {
    format!("rest{bed}")
}

/// What the IPv4 table is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// UDP connections; the IPv6 table gets as many.
    Udp,
    /// TCP connections; the IPv6 table stays empty.
    Tcp,
}

/// One datapath with its tables filled. The calling thread has to be in the namespace, now and whenever frames are run.
#[derive(Debug)]
pub struct Bed {
    /// The programs and their tables.
    pub datapath: Datapath,
    /// The connections, in the order they are visited.
    pub cycle: Cycle,
    /// What they are.
    pub filling: Filling,
    /// Interface index of in0.
    pub inside: u32,
    /// Interface index of out0.
    pub outside: u32,
    /// Interface index of one that is not served.
    pub unserved: u32,
    /// Slots of the IPv4 table.
    pub slots4: u32,
}

impl Bed {
    /// Loads the datapath number `bed` in `netns` and fills its tables with `connections`.
    ///
    /// # Errors
    /// When the kernel refuses, or has no memory.
    pub fn new(netns: &Netns, bed: usize, connections: u32, filling: Filling) -> Result<Self> {
        let index = |name: &str| if_nametoindex(name).with_context(|| format!("no interface {name}"));
        let (inside, outside, unserved) = (index("in0")?, index("out0")?, index(&rest_of(bed))?);
        // As the product sizes its tables: two entries a connection, and operators write powers of two.
        let entries4 = 2 * (connections + HEADROOM).next_power_of_two();
        let entries6 = if filling == Filling::Udp { entries4 } else { 2 };
        // The kernel empties the array of stages when nothing in user space refers to it any more: only a pin does. Named
        // after the namespace, it is found and removed also when this process is killed.
        let pins = Some(Path::new(Bpffs::USUAL).join(format!("{}-{bed}", netns.name())));
        let datapath = Datapath::load(&LoadOptions { entries4, entries6, ifindexes: IFINDEXES, pins })?;
        // Attached somewhere, the program stays in the kernel's XDP dispatcher; else every run of more than one packet
        // rewrites the dispatcher's code and waits for all CPUs, twice.
        datapath.attach((unserved, &rest_of(bed)), 1500, Mode::Native)?;
        let slots4 = Shape::of::<FlowKey4>(entries4, [0; 10]).slots();
        let bed = Self { datapath, cycle: Cycle::new(connections), filling, inside, outside, unserved, slots4 };
        bed.configure()?;
        let hop = |ifindex: u32, mac| NextHop { ifindex: ifindex as u16, mac };
        let hops = Hops { out: hop(outside, INSIDE_MAC), back: hop(inside, OUTSIDE_MAC) };
        match filling {
            Filling::Udp => {
                flows::fill4(&bed.datapath, &bed.cycle, protocol::UDP, hops)?;
                flows::fill6(&bed.datapath, &bed.cycle, hops)?;
            }
            Filling::Tcp => flows::fill4(&bed.datapath, &bed.cycle, protocol::TCP, hops)?,
        }
        Ok(bed)
    }

    fn configure(&self) -> Result<()> {
        let inside = IfaceConfig {
            mac: INSIDE_MAC,
            side: Side::Inside as u8,
            slot: INSIDE_SLOT,
            address4: HOST,
            address6: [0; 16],
            mtu: 1500,
        };
        let (side, address4) = (Side::Outside as u8, [203, 0, 112, 1]);
        let outside = IfaceConfig { mac: OUTSIDE_MAC, side, slot: OUTSIDE_SLOT, address4, ..inside };
        self.datapath.write_iface(self.inside, &inside)?;
        self.datapath.write_iface(self.outside, &outside)?;
        let rule = NatRule {
            from: [10, 0, 0, 0],
            from_mask: [255, 0, 0, 0],
            addresses: 1,
            action: NatAction::Translate as u32,
            ..NatRule::default()
        };
        self.datapath.write_nat(0, &[rule], &[PUBLIC])?;
        self.datapath.write_control(&Control {
            epoch: EPOCH,
            nat_rules: 1,
            port_first: 1024,
            port_last: 65_535,
            inside_allowed: 1,
            // A budget that is never used up: it is the making of an answer that is measured.
            icmp_per_second: u32::MAX,
            ticks_per_second: 1,
            sample_mask: TIME_ONE_IN - 1,
            ..Control::default()
        })?;
        Ok(())
    }

    /// How many connections fill the table.
    pub fn connections(&self) -> u32 {
        self.cycle.length() as u32
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What is left then, goes with the process's other leftovers; see `forwarder_kit::supervise`.
        let _ = self.datapath.remove();
    }
}
