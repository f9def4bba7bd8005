//! Sources that are lies: bogons from outside, and packets whose source is somewhere else (strict) or nowhere (loose).

use anyhow::{Context, Result, ensure};
use forwarder_kit::packet::{Packet, Summary};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::sniff::{Sniffer, mac};
use forwarder_kit::topology::Options;
use forwarder_kit::{Appliance, Netns, Topology, serve};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// A lab whose interface with this role has these keys more.
fn lab(role: &str, keys: &str, more: &str) -> Result<Lab> {
    let net = Topology::new(Options::default())?;
    let role = format!("role = \"{role}\"");
    let config = net.config().replace(&role, &format!("{role}\n{keys}"));
    let appliance = Appliance::start_in(&net.appliance, &format!("{config}{more}{SMALL_TABLE}"))?;
    Ok(Lab { appliance, net })
}

/// Sends a datagram from each of these sources by an interface, and says which of them arrived at the other. All the others
/// have to be dropped for this reason.
fn probe<'a>(
    lab: &Lab,
    (from, by, into): (&Netns, &str, &str),
    (at, there): (&Netns, &str),
    (sources, reason): (&[(&'a str, &str)], &str),
) -> Result<BTreeSet<&'a str>> {
    let (injector, sniffer) = (Sniffer::open(from, by)?, Sniffer::open(at, there)?);
    let (own, to) = (mac(from, by)?, mac(&lab.net.appliance, into)?);
    // The destination port tells them apart, whatever NAT makes of the source.
    for (port, (source, destination)) in (7000..).zip(sources) {
        injector.inject(&Packet::between(source, destination).macs(own, to).udp(1234, port).build())?;
    }
    let mut ports = BTreeSet::new();
    wait_until("each to arrive or to be dropped", PATIENCE, || {
        let seen = sniffer.all(Duration::from_millis(100))?;
        let meant = 7000..7000 + sources.len() as u16;
        let port = |frame: &Vec<u8>| Summary::of(frame)?.ports.map(|ports| ports.1).filter(|port| meant.contains(port));
        ports.extend(seen.iter().filter_map(port));
        Ok(ports.len() as u64 + dropped(lab, reason)? == sources.len() as u64)
    })
    .with_context(|| format!("{ports:?} have arrived"))?;
    Ok((7000..).zip(sources).filter(|(port, _)| ports.contains(port)).map(|(_, (source, _))| *source).collect())
}

fn dropped(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(lab.appliance.status()?.drops()?.get(reason).copied().unwrap_or(0))
}

/// Makes the appliance's neighbours known to it, so that nothing has to wait.
fn acquaint(lab: &Lab) -> Result<()> {
    lab.client().run("ping", "-c 1 -W 20 -q 203.0.113.10")?;
    lab.client().run("ping", "-c 1 -W 20 -q 2001:db8:3::10").map(drop)
}

#[test]
fn bogons_from_outside_begin_nothing_and_answers_of_theirs_pass() -> Result<()> {
    let allowed = "[firewall]\ndefault = { outside = \"allow\" }\n";
    let lab = lab("outside", "bogons = \"drop\"", allowed)?;
    acquaint(&lab)?;
    // The server's own networks are for documentation: bogons. It may answer, but not begin.
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    for family in Family::BOTH {
        EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7))?.ping()?;
    }
    let (v4, v6) = ("10.0.1.10", "2001:db8:1::10");
    let good = [("45.1.2.3", v4), ("192.0.3.1", v4), ("100.128.0.1", v4), ("2400:1::1", v6), ("64:ff9b::102:304", v6)];
    let bad = [
        ("10.9.9.9", v4),
        ("172.31.255.255", v4),
        ("192.168.0.1", v4),
        ("100.64.0.1", v4),
        ("169.254.1.1", v4),
        ("192.0.2.1", v4),
        ("198.19.255.255", v4),
        ("203.0.113.10", v4),
        ("2001:db8:3::10", v6),
        ("fd00::1", v6),
        ("3fff::1", v6),
        ("4000::1", v6),
        ("64:ff9b:1::1", v6),
    ];
    let (from, at) = ((&lab.net.world, "app", "outside"), (lab.client(), "eth0"));
    let arrived = probe(&lab, from, at, (&[&good[..], &bad[..]].concat(), "bogon"))?;
    ensure!(arrived == good.iter().map(|(source, _)| *source).collect(), "{arrived:?}");
    ensure!(dropped(&lab, "bogon")? == bad.len() as u64, "{:?}", lab.appliance.status()?.drops()?);
    let rules = lab.appliance.ask(&["rules"])?;
    ensure!(rules.lines().any(|line| line.contains("bogons by outside") && line.trim().starts_with("13 ")), "{rules}");
    Ok(())
}

/// A source of the interface's own network, one that is elsewhere, and one that is nowhere, in both families.
fn sources() -> [(&'static str, &'static str); 6] {
    let (v4, v6) = ("203.0.113.10", "2001:db8:3::10");
    [
        ("10.0.1.77", v4),
        ("45.1.2.3", v4),
        ("46.1.2.3", v4),
        ("2001:db8:1::77", v6),
        ("2400:1::1", v6),
        ("2401:1::1", v6),
    ]
}

fn way_back(mode: &str, wanted: &[&str]) -> Result<()> {
    let lab = lab("inside", &format!("reverse_path = \"{mode}\""), "")?;
    acquaint(&lab)?;
    lab.net.appliance.ip("route add blackhole 46.0.0.0/8")?;
    lab.net.appliance.ip("-6 route add blackhole 2401::/16")?;
    let (from, at) = ((lab.client(), "eth0", "inside"), (&lab.net.world, "app"));
    let arrived = probe(&lab, from, at, (&sources(), "reverse_path"))?;
    ensure!(arrived == wanted.iter().copied().collect(), "{mode}: {arrived:?}");
    let refused = sources().len() - wanted.len();
    ensure!(dropped(&lab, "reverse_path")? == refused as u64, "{mode}: {:?}", lab.appliance.status()?.drops()?);
    for family in Family::BOTH {
        let echo = lab.client().run("ping", &format!("-c 1 -W 20 -q {}", lab.server(family)))?;
        ensure!(echo.contains(" 0% packet loss"), "{mode}: the client's own address is no lie");
    }
    Ok(())
}

#[test]
fn strictly_a_source_has_to_be_where_it_comes_from() -> Result<()> {
    way_back("strict", &["10.0.1.77", "2001:db8:1::77"])
}

#[test]
fn loosely_a_source_has_to_be_somewhere() -> Result<()> {
    way_back("loose", &["10.0.1.77", "45.1.2.3", "2001:db8:1::77", "2400:1::1"])
}

#[test]
fn unchecked_a_source_may_be_anywhere() -> Result<()> {
    way_back("off", &sources().map(|(source, _)| source))
}
