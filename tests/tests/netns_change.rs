//! The network changes under a running stream: routes, neighbours, links, queues. Connections stay, packets go on.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::sniff::mac;
use forwarder_kit::topology::{Options, Shape, Topology, link};
use forwarder_kit::{Appliance, Netns, serve};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE, in_both_shapes};
use nix::libc::EHOSTUNREACH;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

in_both_shapes! {
    a_router_changes_its_mac_in_mid_stream
    two_queues_carry_parallel_streams
}

/// The next hop's MAC changes and it says so, as a router that fails over does.
fn a_router_changes_its_mac_in_mid_stream(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let _server = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    lab.net.world.set_sysctls(&[("net.ipv4.conf.app.arp_notify", "1"), ("net.ipv6.conf.app.ndisc_notify", "1")])?;
    let mut streams = open_both(&lab)?;
    keep_alive(&mut streams, Duration::from_millis(1200))?;
    for number in 1..=3 {
        lab.net.world.ip(&format!("link set app address 02:00:00:00:0e:{number:02x}"))?;
        // The router's address moves at once, its neighbours learn it from its word. IPv6's is heard in the next second.
        keep_alive(&mut streams, Duration::from_millis(1500)).with_context(|| format!("after change {number}"))?;
    }
    let mut later = open_both(&lab)?;
    keep_alive(&mut later, Duration::from_millis(100))
}

/// A second way out appears, the route moves to it and back; the connection keeps its public address throughout.
#[test]
fn a_route_moves_in_mid_stream() -> Result<()> {
    let net = Topology::two_armed()?;
    link((&net.appliance, "outside2"), (&net.world, "app2"), 1500, 1)?;
    for (netns, end, name) in [(&net.appliance, 10, "outside2"), (&net.world, 1, "app2")] {
        netns.ip(&format!("address add 198.51.101.{end}/24 dev {name}"))?;
        netns.ip(&format!("address add 2001:db8:4::{end}/64 nodad dev {name}"))?;
    }
    let more = format!("[[interface]]\nname = \"outside2\"\nrole = \"outside\"\n{SMALL_TABLE}");
    let lab = Lab { appliance: Appliance::start(&net, &more)?, net };
    let server = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    let mut streams = open_both(&lab)?;
    keep_alive(&mut streams, Duration::from_millis(300))?;
    let (world, appliance) = (&lab.net.world, &lab.net.appliance);
    let before = received(world, "app2")?;
    appliance.ip("route add 203.0.113.0/24 via 198.51.101.1")?;
    appliance.ip("-6 route add 2001:db8:3::/64 via 2001:db8:4::1")?;
    wait_until("the new way to be taken", PATIENCE, || {
        keep_alive(&mut streams, Duration::from_millis(20)).context("after the route moved")?;
        Ok(received(world, "app2")? > before)
    })?;
    let taken = received(world, "app2")?;
    for _ in 0..100 {
        keep_alive(&mut streams, Duration::ZERO)?;
    }
    let moved = received(world, "app2")? - taken;
    ensure!(moved >= 200, "the new way carried {moved} packets of 100 questions on two streams");
    appliance.ip("route del 203.0.113.0/24")?;
    appliance.ip("-6 route del 2001:db8:3::/64")?;
    wait_until("the removed route to be left", PATIENCE, || {
        let kept = received(world, "app2")?;
        keep_alive(&mut streams, Duration::from_millis(200)).context("after the route moved back")?;
        Ok(received(world, "app2")? <= kept + 4)
    })?;
    ensure!(server.requests() == 2, "a connection was opened anew: {:?}", server.peers());
    Ok(())
}

/// An unreachable route answers at once instead of leaving the client to wait, and its removal heals the flow.
#[test]
fn an_unreachable_route_is_answered() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    for (family, net) in [(Family::V4, "198.18.0.0/15"), (Family::V6, "2001:db8:99::/48")] {
        let version = if family == Family::V4 { "-4" } else { "-6" };
        lab.net.appliance.ip(&format!("{version} route add unreachable {net}"))?;
        let target = if family == Family::V4 { "198.18.0.1" } else { "2001:db8:99::1" };
        wait_until("an unreachable answer", PATIENCE, || {
            let mut ping = lab.client().command("ping");
            let output = ping.args(["-c", "1", "-W", "1", target]).output().context("cannot start ping")?;
            let said = String::from_utf8_lossy(&output.stdout).to_lowercase();
            Ok(said.contains("unreachable"))
        })
        .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

/// When nobody answers for a next hop, the sender is told as soon as the kernel gives up, and need not wait for its own
/// timeout.
#[test]
fn a_next_hop_that_does_not_answer_is_told() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let nobodies = [(Family::V4, "198.51.100.77", "10.0.1.1"), (Family::V6, "2001:db8:1:ff::77", "2001:db8:1::1")];
    for (family, nobody, appliance) in nobodies {
        let output = lab.client().command("ping").args(["-c", "1", "-W", "20", nobody]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).to_lowercase();
        let told = said.contains("host unreachable") || said.contains("address unreachable");
        ensure!(told && said.contains(&format!("from {appliance}")), "{family:?}: {said}");
        let begun = Instant::now();
        let to = SocketAddr::new(nobody.parse()?, 80);
        let error = lab.client().enter(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(10)).err()))?;
        let refused = error.as_ref().and_then(std::io::Error::raw_os_error);
        ensure!(refused == Some(EHOSTUNREACH), "{family:?}: {error:?}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{family:?}: after {} s", begun.elapsed().as_secs());
    }
    let drops = lab.appliance.status()?.drops()?;
    ensure!(drops.get("neighbour_unknown").is_some_and(|packets| *packets >= 4), "{drops:?}");
    Ok(())
}

#[test]
fn an_interface_that_comes_back_is_served_again() -> Result<()> {
    let lab = Lab::new(Options { clients: 2, ..Options::default() })?;
    let _server = serve::http(&lab.net.server, 8080)?;
    let fetch = |client: &Netns| {
        let url = format!("http://{}/10", lab.authority(Family::V4, 8080));
        client.run("curl", &format!("-sS -m 20 -o /dev/null {url}")).map(drop)
    };
    fetch(&lab.net.clients[0])?;
    for round in 0..2 {
        lab.net.cut_client(0)?;
        fetch(&lab.net.clients[1]).context("the other client must not notice")?;
        lab.net.mend_client(0)?;
        wait_until("the client to be served again", PATIENCE, || Ok(fetch(&lab.net.clients[0]).is_ok()))
            .with_context(|| format!("round {round}, log:\n{}", lab.appliance.log()))?;
        fetch(&lab.net.clients[1])?;
    }
    Ok(())
}

/// A flow keeps the public address that it began with, as an EIP that is about to go still carries its connections; new
/// flows have the new one.
#[test]
fn the_outside_address_changes_in_mid_stream() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let server = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    let mut streams = open_both(&lab)?;
    keep_alive(&mut streams, Duration::from_millis(100))?;
    let appliance = &lab.net.appliance;
    appliance.set_sysctls(&[("net.ipv4.conf.outside.promote_secondaries", "1")])?;
    appliance.ip("address add 198.51.100.20/24 dev outside")?;
    keep_alive(&mut streams, Duration::from_millis(500)).context("with both addresses")?;
    // The other end goes on knowing the station that has the old one, as a VPC does by its own table.
    let mac = mac(appliance, "outside")?.map(|byte| format!("{byte:02x}")).join(":");
    lab.net.world.ip(&format!("neighbour replace 198.51.100.10 lladdr {mac} dev app nud permanent"))?;
    appliance.ip("address del 198.51.100.10/24 dev outside")?;
    appliance.ip("route replace default via 198.51.100.1")?;
    keep_alive(&mut streams, Duration::from_millis(500)).context("with the new address")?;
    wait_until("a new flow with the new address", PATIENCE, || {
        EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?.ping()?;
        Ok(server.addresses().contains(&IpAddr::from([198, 51, 100, 20])))
    })
}

/// Down and up again loses the routes, so the streams stand until somebody sets them anew; then they go on.
#[test]
fn the_outside_goes_down_and_up_in_mid_stream() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    let mut streams = open_both(&lab)?;
    keep_alive(&mut streams, Duration::from_millis(100))?;
    for command in [
        "link set outside down",
        "link set outside up",
        "-6 address replace 2001:db8:1:ff::10/64 dev outside nodad",
        "route replace default via 198.51.100.1",
        "-6 route replace default via 2001:db8:1:ff::1",
    ] {
        lab.net.appliance.ip(command)?;
    }
    keep_alive(&mut streams, Duration::from_millis(500)).with_context(|| lab.appliance.log())?;
    lab.net.appliance.ip("link set outside mtu 1400")?;
    let ping = |size: u16| format!("-c 1 -W 10 -M do -s {size} {}", lab.server(Family::V4));
    wait_until("the new MTU to count", PATIENCE, || {
        let output = lab.client().command("ping").args(ping(1373).split_whitespace()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("mtu = 1400"))
    })?;
    lab.client().run("ping", &ping(1372))?;
    keep_alive(&mut streams, Duration::from_millis(100))
}

/// As a network manager does that restarts: the flows stand until the controller has noticed.
#[test]
fn forwarding_that_somebody_switches_off_comes_back() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    let keys =
        ["net.ipv4.conf.inside.forwarding", "net.ipv6.conf.inside.forwarding", "net.ipv4.conf.outside.forwarding"];
    lab.net.appliance.set_sysctls(&keys.map(|key| (key, "0")))?;
    wait_until("forwarding", PATIENCE, || {
        let on = keys.iter().map(|key| lab.net.appliance.sysctl(key)).collect::<Result<Vec<_>>>()?;
        Ok(on.iter().all(|value| value == "1"))
    })?;
    keep_alive(&mut open_both(&lab)?, Duration::from_millis(100))
}

/// Killed, and started with a config that says something else: that counts, also for what the old one has left.
#[test]
fn a_restart_with_another_config_does_what_that_says() -> Result<()> {
    let mut lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::tcp_echo(&lab.net.server, &[7], 16)?;
    let to = SocketAddr::new(lab.server(Family::V4), 7);
    let mut stream = EchoConnection::open(lab.client(), to)?;
    stream.ping()?;
    let (both, outside) = (lab.net.config(), "[[interface]]\nname = \"outside\"\nrole = \"outside\"\n");
    let deny = "[firewall]\ndefault = { inside = \"deny\", outside = \"deny\" }\n";

    lab.appliance.kill9()?;
    stream.ping().context("while nobody controls it")?;
    lab.appliance.write_config(&format!("{outside}{SMALL_TABLE}"))?;
    lab.appliance.start_again()?;
    let link = lab.net.appliance.ip("link show dev inside")?;
    ensure!(!link.contains("xdp"), "the datapath is still on inside: {link}");
    let forwards = lab.net.appliance.sysctl("net.ipv4.conf.inside.forwarding")?;
    ensure!(forwards == "0", "the kernel forwards what comes in inside");
    ensure!(EchoConnection::open(lab.client(), to).is_err(), "inside is not served, but passes");

    lab.appliance.kill9()?;
    lab.appliance.write_config(&format!("{both}{SMALL_TABLE}{deny}"))?;
    lab.appliance.start_again()?;
    ensure!(EchoConnection::open(lab.client(), to).is_err(), "the inside may begin nothing");

    lab.appliance.kill9()?;
    lab.appliance.write_config(&format!("{both}{SMALL_TABLE}"))?;
    lab.appliance.start_again()?;
    EchoConnection::open(lab.client(), to)?.ping()?;
    lab.appliance.stop()?;
    let link = lab.net.appliance.ip("link show")?;
    ensure!(!link.contains("xdp"), "the datapath is still there: {link}");
    Ok(())
}

/// Under another name it is not the interface that the config means: the datapath leaves it, and the kernel does not take
/// over what the datapath did.
#[test]
fn a_renamed_interface_is_neither_served_nor_forwarded_by_the_kernel() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let _server = serve::http(&lab.net.server, 8080)?;
    let url = format!("http://{}/10", lab.authority(Family::V4, 8080));
    let fetch = |seconds| lab.client().run("curl", &format!("-sS -m {seconds} -o /dev/null {url}")).map(drop);
    fetch(20)?;
    let appliance = &lab.net.appliance;
    for command in ["link set inside down", "link set inside name other", "link set other up"] {
        appliance.ip(command)?;
    }
    wait_until("its end", PATIENCE, || Ok(!lab.appliance.status()?.has_interface("inside")))?;
    let forwarding = ["net.ipv4.conf.other.forwarding", "net.ipv6.conf.other.forwarding"];
    for key in forwarding {
        ensure!(appliance.sysctl(key)? == "0", "{key} stays 1:\n{}", lab.appliance.log());
    }
    ensure!(fetch(1).is_err(), "somebody forwards");
    for command in ["link set other down", "link set other name inside", "link set inside up"] {
        appliance.ip(command)?;
    }
    wait_until("the client to be served again", PATIENCE, || Ok(fetch(5).is_ok())).with_context(|| lab.appliance.log())
}

fn two_queues_carry_parallel_streams(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, queues: 2, clients: 2, ..Options::default() })?;
    let server = serve::tcp_echo(&lab.net.server, &[7], 16)?;
    let mut streams = Vec::new();
    for family in Family::BOTH {
        for client in &lab.net.clients {
            for _ in 0..4 {
                streams.push(EchoConnection::open(client, SocketAddr::new(lab.server(family), 7))?);
            }
        }
    }
    keep_alive(&mut streams, Duration::from_millis(1000))?;
    ensure!(server.requests() == streams.len() as u64, "{} connections", server.requests());
    Ok(())
}

fn open_both(lab: &Lab) -> Result<Vec<EchoConnection>> {
    let open = |family| EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7));
    Family::BOTH.into_iter().map(open).collect()
}

/// Numbers there and back on all streams in turn, once, and then for a while.
fn keep_alive(streams: &mut [EchoConnection], long: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        for stream in streams.iter_mut() {
            stream.ping()?;
        }
        if begun.elapsed() >= long {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Packets that an interface has received.
fn received(netns: &Netns, interface: &str) -> Result<u64> {
    let said = netns.ip(&format!("-s -j link show dev {interface}"))?;
    let json: serde_json::Value = serde_json::from_str(&said).context("ip printed no JSON")?;
    let packets = json.pointer("/0/stats64/rx/packets").and_then(serde_json::Value::as_u64);
    packets.with_context(|| format!("no packets in {said}"))
}
