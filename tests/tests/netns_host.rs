//! The host that the forwarder runs on: its own traffic, what it gets back when the forwarder ends, and what survives
//! when the forwarder is killed.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::topology::{Options, Shape, Topology};
use forwarder_kit::{Appliance, Netns, serve};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE, in_both_shapes};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

in_both_shapes! {
    the_hosts_own_connections_are_untouched
    sigterm_leaves_the_host_as_it_was
    kill_9_keeps_forwarding_and_a_restart_adopts
}

/// As ssh to the appliance from both sides, and as its own package manager.
fn the_hosts_own_connections_are_untouched(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let own = serve::http(&lab.net.appliance, 2222)?;
    let server = serve::http(&lab.net.server, 8080)?;
    let _echo = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    // A client's connection through it at the same time, so that there is a flow table to be confused with.
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    stream.ping()?;
    let outside: [IpAddr; 2] = [lab.net.public_v4(0).into(), lab.net.public_v6().into()];
    let mut ends: Vec<(&Netns, IpAddr)> = outside.iter().map(|address| (&lab.net.server, *address)).collect();
    if shape == Shape::TwoArmed {
        ends.push((lab.client(), "10.0.1.1".parse()?));
        ends.push((lab.client(), "2001:db8:1::1".parse()?));
    }
    ends.extend(outside.iter().map(|address| (lab.client(), *address)));
    for (from, address) in ends {
        let url = format!("http://{}/200000", SocketAddr::new(address, 2222));
        let got = from.run("curl", &format!("-sS -m 30 -o /dev/null -w %{{size_download}} {url}"))?;
        ensure!(got == "200000", "{} to {address}: got {got} bytes", from.name());
        from.run("ping", &format!("-c 3 -i 0.05 -W 2 -q {address}"))?;
    }
    for family in Family::BOTH {
        let url = format!("http://{}/200000", lab.authority(family, 8080));
        lab.net.appliance.run("curl", &format!("-sS -m 30 -o /dev/null {url}"))?;
        lab.net.appliance.run("ping", &format!("-c 3 -i 0.05 -W 2 -q {}", lab.server(family)))?;
    }
    stream.ping()?;
    ensure!(server.addresses().iter().all(|peer| outside.contains(peer)), "the server saw {:?}", server.addresses());
    ensure!(own.requests() >= 4, "the own server had {} requests", own.requests());
    Ok(())
}

/// The kernel forwards only while the datapath is there to decide: nobody's packets slip by untranslated or unfiltered when
/// it comes or goes.
#[test]
fn nothing_slips_by_when_it_starts_and_ends() -> Result<()> {
    let net = Topology::two_armed()?;
    net.world.ip("route add 10.0.1.0/24 via 198.51.100.10")?;
    let (client, server) = (IpAddr::from(net.client_v4(0)), IpAddr::from(net.server_v4()));
    let mut appliance = Appliance::prepare(&net.appliance, &format!("{}{SMALL_TABLE}", net.config()))?;
    let (stop, came) = (AtomicBool::new(false), AtomicU64::new(0));
    let (at_client, at_server) = std::thread::scope(|scope| {
        let at_client = scope.spawn(|| exchange(&net.clients[0], server, (&stop, &AtomicU64::new(0))));
        let at_server = scope.spawn(|| exchange(&net.server, client, (&stop, &came)));
        let rounds = (0..3).try_for_each(|_| {
            appliance.start_again()?;
            let before = came.load(Ordering::Relaxed);
            wait_until("datagrams to pass", PATIENCE, || Ok(came.load(Ordering::Relaxed) > before))?;
            appliance.stop()
        });
        stop.store(true, Ordering::Relaxed);
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<BTreeMap<IpAddr, u64>>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let ends = (join(at_client)?, join(at_server)?);
        rounds.map(|()| ends)
    })?;
    ensure!(at_client.is_empty(), "packets came in that nobody asked for: {at_client:?}");
    ensure!(at_server.keys().eq([&IpAddr::from(net.public_v4(0))]), "the server saw {at_server:?}");
    Ok(())
}

/// Sends a datagram to port 9 there every tenth of a millisecond until `stop`, and counts who sends to port 9 here.
fn exchange(here: &Netns, there: IpAddr, (stop, came): (&AtomicBool, &AtomicU64)) -> Result<BTreeMap<IpAddr, u64>> {
    here.enter(|| {
        let (sender, receiver) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("0.0.0.0:9")?);
        receiver.set_read_timeout(Some(Duration::from_micros(100)))?;
        let mut seen = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            // Refused when ICMP has said something about an earlier one.
            let _ = sender.send_to(b"?", (there, 9));
            if let Ok((_, peer)) = receiver.recv_from(&mut [0; 8]) {
                *seen.entry(peer.ip()).or_default() += 1;
                came.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(seen)
    })
}

/// A client's source port that the host listens on is not kept: the host's socket keeps its peers.
#[test]
fn nat_takes_no_port_that_the_host_uses() -> Result<()> {
    let net = Topology::two_armed()?;
    let own = serve::udp_echo(&net.appliance, &[40_000])?;
    let appliance = Appliance::start(&net, SMALL_TABLE)?;
    let lab = Lab { appliance, net };
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    let ask = |from: &Netns, to: SocketAddr| {
        from.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:40000")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.send_to(b"?", to)?;
            let mut answer = [0; 8];
            socket.recv_from(&mut answer).context("no answer")?;
            Ok(())
        })
    };
    ask(lab.client(), SocketAddr::new(lab.server(Family::V4), 9000))
        .or_else(|_| ask(lab.client(), SocketAddr::new(lab.server(Family::V4), 9000)).context("client to server"))?;
    ensure!(
        server.peers().iter().all(|peer| peer.port() != 40_000),
        "a listening port was taken: {:?}",
        server.peers()
    );
    ask(&lab.net.server, SocketAddr::new(lab.net.public_v4(0).into(), 40_000))
        .context("server to the host's own port")?;
    ensure!(own.requests() == 1, "the host's own server had {} requests", own.requests());
    Ok(())
}

fn sigterm_leaves_the_host_as_it_was(shape: Shape) -> Result<()> {
    let net = Topology::new(Options { shape, ..Options::default() })?;
    let before = stable_sysctls(&net.appliance)?;
    let mut lab = Lab { appliance: Appliance::start(&net, SMALL_TABLE)?, net };
    let _server = serve::http(&lab.net.server, 8080)?;
    fetch(&lab, Family::V4)?;
    let attached = lab.net.appliance.ip("-d link show")?;
    ensure!(attached.contains("xdp"), "nothing was attached: {attached}");
    lab.appliance.stop()?;
    let after = stable_sysctls(&lab.net.appliance)?;
    let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    ensure!(before.len() == after.len() && changed.is_empty(), "sysctls before and after: {changed:?}");
    let links = lab.net.appliance.ip("-d link show")?;
    ensure!(!links.contains("xdp"), "a program is left: {links}");
    ensure!(!lab.appliance.pins().exists(), "pins are left in {}", lab.appliance.pins().display());
    ensure!(!lab.appliance.state().exists(), "state is left in {}", lab.appliance.state().display());
    ensure!(fetch_within(&lab, Family::V4, 3).is_err(), "somebody still forwards");
    lab.appliance.start_again().context("it has to start again")?;
    fetch(&lab, Family::V4)
}

fn kill_9_keeps_forwarding_and_a_restart_adopts(shape: Shape) -> Result<()> {
    let mut lab = Lab::of(shape)?;
    let server = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    let open = |lab: &Lab, family| EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7));
    let mut streams = Vec::new();
    for family in Family::BOTH {
        streams.push(open(&lab, family)?);
    }
    ping_all(&mut streams, 20)?;
    lab.appliance.kill9()?;
    ping_all(&mut streams, 50).context("after kill -9")?;
    for family in Family::BOTH {
        streams.push(open(&lab, family).context("a new connection after kill -9")?);
    }
    ping_all(&mut streams, 20)?;
    lab.appliance.start_again().context("the restart")?;
    ping_all(&mut streams, 50).context("after the restart")?;
    let flows = lab.appliance.flows()?;
    ensure!(flows.iter().filter(|flow| flow.protocol == 6).count() == 4, "adopted flows: {flows:?}");
    ensure!(server.requests() == 4, "connections were opened anew: {:?}", server.peers());
    lab.appliance.stop()?;
    let links = lab.net.appliance.ip("-d link show")?;
    ensure!(!links.contains("xdp") && !lab.appliance.pins().exists(), "left after the restart's end: {links}");
    Ok(())
}

/// As an upgrade to a version whose maps are laid out otherwise: the old one forwards until the new one can.
#[test]
fn another_versions_datapath_forwards_until_it_is_replaced() -> Result<()> {
    let mut lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    stream.ping()?;
    lab.appliance.kill9()?;
    let pins = lab.appliance.pins();
    let maps = || -> Result<Vec<String>> {
        let names = std::fs::read_dir(&pins)?.map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()));
        Ok(names.collect::<Result<Vec<_>>>()?.into_iter().filter(|name| name.starts_with("abi-")).collect())
    };
    let [own] = maps()?.try_into().map_err(|all| anyhow::anyhow!("one version's maps, not {all:?}"))?;
    std::fs::rename(pins.join(&own), pins.join("abi-0"))?;
    let config = std::fs::read_to_string(lab.appliance.scratch().join("forwarder.toml"))?;
    let rules = "[[firewall.rule]]\naction = \"allow\"\n".repeat(16_385);
    lab.appliance.write_config(&format!("{config}{rules}"))?;
    let ended = lab.appliance.run_to_end()?;
    ensure!(!ended.status.success(), "so many rules do not fit");
    ensure!(maps()? == ["abi-0"], "{:?}", maps());
    stream.ping().context("after a start that failed")?;
    lab.appliance.write_config(&config)?;
    lab.appliance.start_again()?;
    ensure!(maps()? == [own], "{:?}", maps());
    lab.appliance.stop()
}

/// Killed while it starts for the first time, it leaves half a datapath, which is in nobody's way.
#[test]
fn killed_at_its_first_start_it_starts_the_next_time() -> Result<()> {
    [0, 20, 100, 300].into_iter().map(Duration::from_millis).try_for_each(killed_after_its_first_pin)
}

fn killed_after_its_first_pin(moment: Duration) -> Result<()> {
    let net = Topology::two_armed()?;
    let mut appliance = Appliance::prepare(&net.appliance, &format!("{}{SMALL_TABLE}", net.config()))?;
    let config = appliance.scratch().join("forwarder.toml");
    let mut first = appliance.command(&["run", "--config"])?.arg(config).stderr(Stdio::null()).spawn()?;
    let has_pins = || Ok(std::fs::read_dir(appliance.pins()).is_ok_and(|mut pins| pins.next().is_some()));
    let pinned = wait_until("pins of the first start", PATIENCE, has_pins);
    std::thread::sleep(moment);
    first.kill()?;
    first.wait()?;
    pinned?;
    appliance.start_again()?;
    let lab = Lab { appliance, net };
    let _server = serve::http(&lab.net.server, 8080)?;
    fetch(&lab, Family::V4)
        .with_context(|| format!("after kill -9 {moment:?} after the first pin: {}", lab.appliance.log()))
}

#[test]
fn two_instances_refuse_each_other() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::http(&lab.net.server, 8080)?;
    let mut second = Appliance::prepare(&lab.net.appliance, &lab.net.config())?;
    let output = second.run_to_end()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "ended with {}: {said}", output.status);
    ensure!(said.contains("run"), "does not say that another one runs: {said}");
    fetch(&lab, Family::V4).context("the first must not suffer")
}

/// Without a config it finds out itself who is inside and who is outside.
#[test]
fn no_config_serves_what_the_default_route_says() -> Result<()> {
    for shape in [Shape::TwoArmed, Shape::OneArmed] {
        let net = Topology::new(Options { shape, ..Options::default() })?;
        let lab = Lab { appliance: Appliance::start_in(&net.appliance, SMALL_TABLE)?, net };
        let server = serve::http(&lab.net.server, 8080)?;
        fetch(&lab, Family::V4)?;
        let seen = server.addresses();
        ensure!(seen.iter().all(|peer| *peer == lab.seen(Family::V4)), "the server saw {seen:?}");
    }
    Ok(())
}

/// One interface is missing: a word about it, the others are served, and it is when it comes.
#[test]
fn a_missing_interface_does_not_stop_the_others() -> Result<()> {
    let net = Topology::two_armed()?;
    let more = format!("[[interface]]\nname = \"later0\"\nrole = \"inside\"\n{SMALL_TABLE}");
    let lab = Lab { appliance: Appliance::start(&net, &more)?, net };
    let _server = serve::http(&lab.net.server, 8080)?;
    fetch(&lab, Family::V4)?;
    wait_until("a word about later0", PATIENCE, || Ok(lab.appliance.log().contains("later0")))
}

fn fetch(lab: &Lab, family: Family) -> Result<()> {
    fetch_within(lab, family, 30)
}

fn fetch_within(lab: &Lab, family: Family, seconds: u32) -> Result<()> {
    let url = format!("http://{}/1000", lab.authority(family, 8080));
    lab.client().run("curl", &format!("-sS -m {seconds} -o /dev/null {url}")).map(drop)
}

fn ping_all(streams: &mut [EchoConnection], rounds: u32) -> Result<()> {
    for _ in 0..rounds {
        for stream in streams.iter_mut() {
            stream.ping()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Without the ones that count or that the kernel rewrites by itself.
fn stable_sysctls(netns: &Netns) -> Result<Vec<(String, String)>> {
    let moving = ["nf_conntrack_count", "stable_secret", "/route/flush", "rds_tcp", "fib_sync_mem"];
    let all = netns.sysctls()?;
    Ok(all.into_iter().filter(|(path, _)| !moving.iter().any(|name| path.contains(name))).collect())
}
