//! The same 10,000 firewall rules for forwarder, for a chain of nftables and for a set of nftables: 9,999 that refuse UDP from
//! a network to another and to some ports, none of which the load meets, and one that allows what comes from inside.

use anyhow::{Context, Result};
use forwarder_kit::Netns;
use std::fs;

/// What one of the rules refuses.
struct Refused {
    source: String,
    destination: String,
    ports: String,
}

fn refused() -> impl Iterator<Item = Refused> {
    (0..9_999u32).map(|number| {
        let (net, host, port) = (number >> 8, number & 255, 1 + number * 5);
        Refused {
            source: format!("172.{}.{host}.0/24", 16 + net),
            destination: format!("{}.{host}.0.0/16", 20 + net),
            ports: format!("{port}-{}", port + 3),
        }
    })
}

/// As an operator writes them for forwarder.
pub fn forwarder() -> String {
    let rules = refused().map(|Refused { source, destination, ports }| {
        format!(
            "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"udp\"\nsource = \"{source}\"\n\
             destination = \"{destination}\"\ndestination_ports = [\"{ports}\"]\n"
        )
    });
    rules.collect::<String>() + "[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\n"
}

/// Where new flows are asked about, with what an IPv4 table of nftables needs around it.
fn chain(before: &str, rules: &str) -> String {
    format!(
        "table ip rules {{\n{before}chain forward {{\ntype filter hook forward priority 0; policy drop;\n\
         ct state established,related accept\n{rules}iifname \"r0\" accept\n}}\n}}\n"
    )
}

/// As nftables' rules.
pub fn nft_chain() -> String {
    let rules = refused().map(|Refused { source, destination, ports }| {
        format!("ip saddr {source} ip daddr {destination} udp dport {ports} drop\n")
    });
    chain("", &rules.collect::<String>())
}

/// As elements of one of nftables' sets with concatenated ranges.
pub fn nft_set() -> String {
    let elements: Vec<_> =
        refused().map(|Refused { source, destination, ports }| format!("{source} . {destination} . {ports}")).collect();
    let set = format!(
        "set refused {{\ntype ipv4_addr . ipv4_addr . inet_service; flags interval;\nelements = {{ {} }}\n}}\n",
        elements.join(",\n")
    );
    chain(&set, "ip saddr . ip daddr . udp dport @refused drop\n")
}

/// Has a namespace's nftables take them.
///
/// # Errors
/// When it does not.
pub fn load(netns: &Netns, rules: &str) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot make a directory for nftables' rules")?;
    let file = directory.path().join("rules.nft");
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    netns.run("nft", &format!("-f {}", file.display())).map(drop)
}
