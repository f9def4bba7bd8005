//! When ports or table entries run out: new flows are refused by name and told so, what is established goes on.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use nix::libc::EHOSTUNREACH;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// What became of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// ICMP said that it is prohibited (type 3 code 13), which Linux reports as "no route to host".
    Refused,
}

/// Everybody who is refused is told, so that nobody has to be waited for in vain.
const ALL_ARE_TOLD: &str = "[icmp]\nerrors_per_second_per_cpu = 1000000\n";

#[test]
fn ports_that_run_out_are_refused_per_remote() -> Result<()> {
    const PORTS: usize = 8;
    let config = format!("[nat]\nports = \"50000-50007\"\n{SMALL_TABLE}{ALL_ARE_TOLD}");
    let lab = Lab::with_config(Options::default(), &config)?;
    let server = serve::udp_echo(&lab.net.server, &[9001, 9002])?;
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    for port in [9001, 9002] {
        let fates = ask_from(&lab, port, 2000..2024)?;
        let count = |fate| fates.iter().filter(|other| **other == fate).count();
        let (answered, refused) = (count(Fate::Answered), count(Fate::Refused));
        // Which ports are tried is random and bounded: the last free one may be missed.
        ensure!((PORTS / 2..=PORTS).contains(&answered), "{answered} answered with {PORTS} ports: {fates:?}");
        ensure!(refused > 0, "nobody was told: {fates:?}");
    }
    ensure!(server.peers().iter().all(|peer| (50_000..=50_007).contains(&peer.port())), "{:?}", server.peers());
    let drops = lab.appliance.status()?.drops()?;
    ensure!(drops.get("nat_exhausted").is_some_and(|count| *count > 0), "{drops:?}");
    Ok(())
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() -> Result<()> {
    let lab = Lab::with_config(Options::default(), &format!("[flows]\nmax = \"1k\"\n{ALL_ARE_TOLD}"))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    let _udp = serve::udp_echo(&lab.net.server, &[9001])?;
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    stream.ping()?;
    let fates = ask_from(&lab, 9001, 2000..4400)?;
    let answered = fates.iter().filter(|fate| **fate == Fate::Answered).count();
    ensure!((400..=2200).contains(&answered), "{answered} of {} found room in a table of 1,024", fates.len());
    let drops = lab.appliance.status()?.drops()?;
    ensure!(drops.get("table_full").is_some_and(|count| *count > 0), "{drops:?}");
    for _ in 0..100 {
        stream.ping().context("the established connection was a victim")?;
    }
    Ok(())
}

/// By default a tenth of the table is not for what nobody has answered: the table is never full of it.
#[test]
fn unanswered_connections_have_their_share_and_no_more() -> Result<()> {
    const SHARE: u64 = 1024 * 90 / 100;
    const ASKED: u16 = 1400;
    let lab = Lab::with_config(Options::default(), "[flows]\nmax = \"1k\"\n[timeouts]\nudp = \"350s\"\n")?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    lab.net.world.ip("route add blackhole 203.0.113.99/32")?;
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    let refused = || -> Result<u64> {
        let drops = lab.appliance.status()?.drops()?;
        ensure!(drops.keys().all(|reason| reason == "unanswered_limit"), "{drops:?}");
        Ok(drops.get("unanswered_limit").copied().unwrap_or(0))
    };
    ask_nobody(&lab, 2000..2000 + ASKED)?;
    let before = refused()?;
    ensure!(before >= u64::from(ASKED) - SHARE, "{before} of {ASKED} were refused");
    // What begins while the sweeper is at it may count twice until the next pass: then there is room for the rest.
    lab.appliance.wait_for_sweep()?;
    ask_nobody(&lab, 4000..4000 + ASKED)?;
    let all = refused()?;
    ensure!(all == 2 * u64::from(ASKED) - SHARE, "{before} of {ASKED}, then {all} of twice as many were refused");
    stream.ping().context("the established connection was a victim")
}

/// A datagram from each of these ports to somebody who does not answer.
fn ask_nobody(lab: &Lab, from: std::ops::Range<u16>) -> Result<()> {
    lab.client().enter(|| {
        for own in from {
            UdpSocket::bind(("0.0.0.0", own))?.send_to(b"anybody?", "203.0.113.99:9")?;
        }
        Ok(())
    })
}

/// A flood that lasts longer than its flows has its share once: what is on its way out still takes room of it.
#[test]
fn what_is_on_its_way_out_counts_until_its_room_is_free() -> Result<()> {
    let config = "[flows]\nmax = \"1k\"\n[timeouts]\nudp = \"1s\"\n";
    let lab = Lab::with_config(Options::default(), config)?;
    lab.net.world.ip("route add blackhole 203.0.113.99/32")?;
    for from in (2000..62_000).step_by(100) {
        ask_nobody(&lab, from..from + 100)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let drops = lab.appliance.status()?.drops()?;
    ensure!(drops.keys().eq(["unanswered_limit"]), "{drops:?}");
    Ok(())
}

/// Most of what the datapath has counted as unanswered has long ended: a controller that takes over has to go on from there,
/// also before it has looked at the table itself.
#[test]
fn a_restart_remembers_which_connections_have_ended() -> Result<()> {
    let config = "[flows]\nmax = \"1k\"\n[timeouts]\nudp = \"1s\"\n";
    let mut lab = Lab::with_config(Options::default(), config)?;
    lab.net.world.ip("route add blackhole 203.0.113.99/32")?;
    for from in [2000, 3000, 4000] {
        ask_nobody(&lab, from..from + 400)?;
        wait_until("them to be forgotten", PATIENCE, || Ok(lab.appliance.status()?.room_taken()? < 10))?;
    }
    lab.appliance.wait_for_sweep()?;
    lab.appliance.kill9()?;
    lab.appliance.start_again()?;
    for own in 5000..5100 {
        ask_nobody(&lab, own..own + 1)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let drops = lab.appliance.status()?.drops()?;
    ensure!(!drops.contains_key("unanswered_limit"), "{drops:?}");
    Ok(())
}

/// Connections that nobody has answered make room within seconds, long before their timeout of half a minute.
#[test]
fn a_full_table_gives_up_what_nobody_answered() -> Result<()> {
    let whole = "[flows]\nmax = \"1k\"\n[firewall.limits]\nunanswered_percent = 100\n";
    let lab = Lab::with_config(Options::default(), whole)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    // A route to nowhere: no answer, and no ICMP error either.
    lab.net.world.ip("route add blackhole 203.0.113.99/32")?;
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    stream.ping()?;
    let begun = std::time::Instant::now();
    ask_nobody(&lab, 2000..3400)?;
    let full = |lab: &Lab| anyhow::Ok(lab.appliance.status()?.drops()?.get("table_full").copied().unwrap_or(0));
    ensure!(full(&lab)? > 0, "1,400 connections fit a table for 1,024");
    wait_until("room for a new connection", PATIENCE, || {
        stream.ping().context("the established connection was a victim")?;
        Ok(EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7)).is_ok())
    })?;
    ensure!(begun.elapsed() > Duration::from_secs(5), "what was younger than five seconds was given up");
    stream.ping().context("the established connection was a victim")
}

/// One datagram from each of these ports, one after the other.
fn ask_from(lab: &Lab, port: u16, from: std::ops::Range<u16>) -> Result<Vec<Fate>> {
    let to = SocketAddr::new(lab.server(Family::V4), port);
    lab.client().enter(|| {
        from.map(|own| {
            let socket = UdpSocket::bind(("0.0.0.0", own))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"room?")?;
            match socket.recv(&mut [0; 16]) {
                Ok(_) => Ok(Fate::Answered),
                Err(error) if error.raw_os_error() == Some(EHOSTUNREACH) => Ok(Fate::Refused),
                Err(error) => Err(error).with_context(|| format!("port {own} was told nothing")),
            }
        })
        .collect()
    })
}
