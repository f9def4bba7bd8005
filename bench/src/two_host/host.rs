//! One end: its interface with generator and sink, the station that its frames go to, the allowances of its NIC.

use crate::load::{Load, Program, Slot};
use anyhow::{Context, Result, bail};
use forwarder_ebpf::abi::LoadStation;
use forwarder_kit::run::{output, run};
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

/// An end.
#[derive(Debug)]
pub(super) struct Host {
    /// Generator and sink.
    pub(super) load: Load,
    interface: String,
}

impl Host {
    /// One that generates by an interface and counts what comes back.
    pub(super) fn generator(interface: &str) -> Result<Self> {
        Self::open(interface, Slot::Client)
    }

    /// One that sends back by the interface that it came by.
    pub(super) fn reflector(interface: &str) -> Result<Self> {
        Self::open(interface, Slot::Server)
    }

    fn open(interface: &str, slot: Slot) -> Result<Self> {
        let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let mut load = Load::open()?;
        // ENA and veth take redirected frames only when they have a program themselves.
        load.attach(Program::Sink, index)?;
        load.lead(slot, index)?;
        Ok(Self { load, interface: interface.to_owned() })
    }

    /// The MACs of frames to an address: the neighbour's, or the gateway's towards it, and the own.
    pub(super) fn station(&self, to: Ipv4Addr) -> Result<LoadStation> {
        let route = run(Command::new("ip").args(["-4", "route", "get", &to.to_string(), "oif", &self.interface]))?;
        let next_hop = word_after(&route, "via").unwrap_or_else(|| to.to_string());
        // Makes the kernel ask for it; whether there is an answer does not matter.
        output(Command::new("ping").args(["-c", "1", "-W", "1", "-I", &self.interface, &next_hop]))?;
        let neighbour = run(Command::new("ip").args(["neigh", "show", &next_hop, "dev", &self.interface]))?;
        let Some(mac) = word_after(&neighbour, "lladdr") else { bail!("{next_hop} has no MAC address: is it there?") };
        Ok(LoadStation { to: parse_mac(&mac)?, from: own_mac(&self.interface)? })
    }

    /// ENA's counters of packets that EC2 held back; none where the driver has no such counters.
    pub(super) fn allowances(&self) -> BTreeMap<String, u64> {
        let Ok(text) = run(Command::new("ethtool").args(["-S", &self.interface])) else { return BTreeMap::new() };
        parse_allowances(&text)
    }
}

fn parse_allowances(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .filter(|(name, _)| name.trim().ends_with("_allowance_exceeded"))
        .filter_map(|(name, value)| Some((name.trim().to_owned(), value.trim().parse().ok()?)))
        .collect()
}

fn word_after(text: &str, word: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    words.find(|found| *found == word)?;
    words.next().map(ToOwned::to_owned)
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("`{text}` is no MAC address"))
}

fn own_mac(interface: &str) -> Result<[u8; 6]> {
    nix::ifaddrs::getifaddrs()
        .context("cannot list the interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .with_context(|| format!("{interface} has no MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ip_and_ethtool_are_understood() {
        let route = "203.0.113.10 via 10.0.1.1 dev eth0 src 10.0.1.10 uid 0\n    cache\n";
        assert_eq!(word_after(route, "via").as_deref(), Some("10.0.1.1"));
        assert_eq!(word_after("10.0.1.1 lladdr 0e:1:2:3:4:ff REACHABLE", "lladdr").as_deref(), Some("0e:1:2:3:4:ff"));
        assert_eq!(parse_mac("0e:01:02:03:04:ff").ok(), Some([14, 1, 2, 3, 4, 255]));
        assert!(parse_mac("0e:01:02:03:04").is_err());
    }

    #[test]
    fn allowance_counters_are_found_and_nothing_else() {
        let statistics = "NIC statistics:\n     tx_timeout: 0\n     bw_in_allowance_exceeded: 0\n     \
                          pps_allowance_exceeded: 17\n     conntrack_allowance_exceeded: 2\n     \
                          conntrack_allowance_available: 136812\n     queue_0_tx_cnt: 5\n";
        let expected = [("bw_in", 0), ("pps", 17), ("conntrack", 2)];
        let expected = expected.map(|(name, count)| (format!("{name}_allowance_exceeded"), count));
        assert_eq!(parse_allowances(statistics), BTreeMap::from(expected));
        assert!(parse_allowances("NIC statistics:\n     peer_ifindex: 3\n     rx_queue_0_drops: 0\n").is_empty());
    }
}
