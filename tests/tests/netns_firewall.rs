//! Firewall rules between real programs: who may speak, how the others are told, and what a reload does to live connections.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::wait_until;
use forwarder_kit::topology::Options;
use forwarder_kit::{Netns, serve};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Speaks, and says what came of it.
type Speak = fn(&Netns, SocketAddr, Reached) -> Result<Reached>;

/// What came of an attempt to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// Somebody answered.
    Yes,
    /// A TCP reset.
    Reset,
    /// ICMP: administratively prohibited.
    Prohibited,
    /// Nothing.
    Silence,
}

fn outcome(result: std::io::Result<()>) -> Result<Reached> {
    match result {
        Ok(()) => Ok(Reached::Yes),
        Err(error) if error.raw_os_error() == Some(ECONNREFUSED) => Ok(Reached::Reset),
        Err(error) if [Some(EHOSTUNREACH), Some(EACCES)].contains(&error.raw_os_error()) => Ok(Reached::Prohibited),
        Err(error) if [ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&error.kind()) => Ok(Reached::Silence),
        Err(error) => Err(error).context("neither an answer nor a refusal"),
    }
}

impl Reached {
    /// How long to wait for it: for silence no longer than TCP does before it asks again, or that counts.
    fn patience(self) -> Duration {
        if self == Self::Silence { Duration::from_millis(700) } else { Duration::from_secs(20) }
    }
}

fn tcp(from: &Netns, to: SocketAddr, wanted: Reached) -> Result<Reached> {
    from.enter(|| outcome(TcpStream::connect_timeout(&to, wanted.patience()).map(drop)))
}

fn udp(from: &Netns, to: SocketAddr, wanted: Reached) -> Result<Reached> {
    from.enter(|| {
        let own = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(own)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(wanted.patience()))?;
        socket.send(b"anybody?")?;
        outcome(socket.recv(&mut [0; 16]).map(drop))
    })
}

const RULES: &str = r#"
[[firewall.set]]
name = "server"
prefixes = ["203.0.113.0/24", "2001:db8:3::/64"]

[[firewall.rule]]
name = "no telnet"
action = "reject"
in = "inside"
protocol = "tcp"
destination_ports = ["23", "9000-9099"]

[[firewall.rule]]
name = "no chatter"
action = "reject"
protocol = "udp"
destination = ["@server"]
destination_ports = [ "9002" ]

[[firewall.rule]]
name = "silence"
action = "deny"
in = "inside"
destination = ["@server"]
protocol = ["tcp", "udp"]
destination_ports = ["8081", "9003"]

[[firewall.rule]]
name = "the server may come in"
action = "allow"
in = "outside"
source = ["@server", "!203.0.113.11"]
protocol = "tcp"
destination_ports = ["7"]
"#;

#[test]
fn rules_say_who_may_speak_and_how_the_others_are_told() -> Result<()> {
    let lab = Lab::with_config(Options::default(), &format!("{RULES}{SMALL_TABLE}"))?;
    lab.net.world.ip("route add 10.0.1.0/24 via 198.51.100.10")?;
    lab.net.server.ip("address add 203.0.113.11/24 dev eth0")?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7, 23, 8081, 9010], 8)?;
    let _udp = serve::udp_echo(&lab.net.server, &[9001, 9002, 9003])?;
    let _inside = serve::tcp_echo(lab.client(), &[7, 8], 8)?;
    for family in Family::BOTH {
        let server = |port| SocketAddr::new(lab.server(family), port);
        let client = |port| match family {
            Family::V4 => SocketAddr::new(lab.net.client_v4(0).into(), port),
            Family::V6 => SocketAddr::new(lab.net.client_v6(0).into(), port),
        };
        let (inside, outside) = (lab.client(), &lab.net.server);
        let says: [(&str, Speak, &Netns, SocketAddr, Reached); 9] = [
            ("allowed by default", tcp, inside, server(7), Reached::Yes),
            ("rejected by a port", tcp, inside, server(23), Reached::Reset),
            ("rejected by a range", tcp, inside, server(9010), Reached::Reset),
            ("denied", tcp, inside, server(8081), Reached::Silence),
            ("UDP by default", udp, inside, server(9001), Reached::Yes),
            ("UDP rejected", udp, inside, server(9002), Reached::Prohibited),
            ("UDP denied", udp, inside, server(9003), Reached::Silence),
            ("from outside, allowed", tcp, outside, client(7), Reached::Yes),
            ("from outside, by default", tcp, outside, client(8), Reached::Silence),
        ];
        for (what, speak, from, to, wanted) in says {
            let got = speak(from, to, wanted)?;
            ensure!(got == wanted, "{family:?}, {what}: {got:?} instead of {wanted:?}\n{}", lab.appliance.log());
        }
    }
    lab.net.server.run("ping", "-c 1 -W 20 -I 203.0.113.11 203.0.113.1")?;
    let mut other = lab.net.server.command("socat");
    let refused = other.args(["-T1", "-", "TCP:10.0.1.10:7,bind=203.0.113.11,connect-timeout=1"]).output()?;
    ensure!(!refused.status.success(), "an address that the rule leaves out got in");
    let rules = hits(&lab)?;
    let of = |name: &str| rules.iter().find(|(other, _)| other == name).map(|(_, hits)| *hits);
    ensure!(of("no telnet") == Some(4) && of("no chatter") == Some(2), "{rules:?}");
    ensure!(of("the server may come in") == Some(2) && of("default, inside") == Some(4), "{rules:?}");
    Ok(())
}

fn hits(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let json: serde_json::Value = serde_json::from_str(&lab.appliance.ask(&["rules", "--json"])?)?;
    let rules = json.as_array().context("a list")?;
    let row = |rule: &serde_json::Value| Some((rule["name"].as_str()?.to_owned(), rule["hits"].as_u64()?));
    rules.iter().map(|rule| row(rule).context("name and hits")).collect()
}

#[test]
fn a_reload_ends_what_is_no_longer_allowed_and_nothing_else() -> Result<()> {
    let lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7, 8], 8)?;
    for family in Family::BOTH {
        let open = |port| EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), port));
        let (mut kept, mut ended) = (open(7)?, open(8)?);
        kept.ping()?;
        ended.ping()?;
        let rule =
            "[[firewall.rule]]\nname = \"no 8\"\naction = \"deny\"\nprotocol = \"tcp\"\ndestination_ports = [\"8\"]\n";
        configure(&lab, &format!("{rule}{SMALL_TABLE}"))?;
        lab.appliance.ask(&["reload"])?;
        for _ in 0..20 {
            kept.ping().context("it is still allowed")?;
        }
        let before = lab.appliance.status()?.drops()?.get("policy").copied().unwrap_or(0);
        ensure!(ended.ping().is_err(), "{family:?}: it is no longer allowed");
        let after = lab.appliance.status()?.drops()?.get("policy").copied().unwrap_or(0);
        ensure!(after > before, "{before} {after}");
        configure(&lab, "[[firewall.rule]]\naction = \"perhaps\"\n")?;
        ensure!(!lab.appliance.try_ask(&["reload"])?.status.success(), "nonsense was applied");
        kept.ping()?;
        configure(&lab, SMALL_TABLE)?;
        lab.appliance.ask(&["reload"])?;
        open(8)?.ping()?;
    }
    Ok(())
}

/// Writes a config with these sections behind the interfaces.
fn configure(lab: &Lab, more: &str) -> Result<()> {
    lab.appliance.write_config(&format!("{}{more}", lab.net.config()))
}

/// A set changes under live connections, and what a flow would meet is explained.
#[test]
fn sets_change_live_and_flows_are_explained() -> Result<()> {
    let rules = "[[firewall.set]]\nname = \"bad\"\nprefixes = [\"192.0.2.1\"]\n\
        [[firewall.rule]]\nname = \"no bad\"\naction = \"deny\"\ndestination = [\"@bad\"]\n";
    let lab = Lab::with_config(Options::default(), &format!("{rules}{SMALL_TABLE}"))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    let open = |family| EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7));
    let (mut v4, mut v6) = (open(Family::V4)?, open(Family::V6)?);
    let explain = |flow: &str| lab.appliance.ask(&["explain", flow]);
    let flow = "10.0.1.10:40000 -> 203.0.113.10:7/tcp in inside";
    let said = explain(flow)?;
    for part in ["out by outside", "default for inside is allow", "leaves as 198.51.100.10", "forwarded"] {
        ensure!(said.contains(part), "no `{part}` in\n{said}");
    }
    lab.appliance.ask(&["sets", "add", "bad", "203.0.113.0/24"])?;
    let said = explain(flow)?;
    for part in ["203.0.113.10 is in set @bad", "rule `no bad`", "dropped as policy"] {
        ensure!(said.contains(part), "no `{part}` in\n{said}");
    }
    ensure!(v4.ping().is_err(), "its destination is in the set now");
    for _ in 0..10 {
        v6.ping()?;
    }
    lab.appliance.ask(&["sets", "remove", "bad", "203.0.113.8/29"])?;
    open(Family::V4)?.ping()?;
    let many = lab.appliance.scratch().join("many");
    let lines: String =
        (0..100_000u32).map(|n| format!("11.{}.{}.{}\n", n >> 15 & 255, n >> 7 & 255, (n & 127) * 2)).collect();
    std::fs::write(&many, lines)?;
    let begun = std::time::Instant::now();
    lab.appliance.ask(&["sets", "replace", "bad", "--file", many.to_str().context("a path")?])?;
    println!("a set of 100,000 in {:?} with the test's own build", begun.elapsed());
    ensure!(lab.appliance.ask(&["sets", "list"])?.contains("100000"), "{}", lab.appliance.ask(&["sets", "list"])?);
    open(Family::V4)?.ping()?;
    ensure!(explain("10.0.1.10:1 -> 11.0.0.2:80/tcp in inside")?.contains("no bad"));
    ensure!(explain("[2001:db8:1::10]:1 -> [2001:db8:3::10]:80/tcp")?.contains("forwarded"));
    ensure!(explain("203.0.113.10:1 -> 10.0.1.10:80/tcp in outside")?.contains("default for outside is deny"));
    Ok(())
}

/// A route that refuses says so in an explanation, and ends no connection that the rules allow only by where it leaves.
#[test]
fn routes_are_explained_and_a_refusing_one_ends_nothing() -> Result<()> {
    let rules = "[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\nout = \"outside\"\n\
        [[firewall.rule]]\nname = \"rest\"\naction = \"deny\"\ndestination = [\"203.0.113.10\"]\n";
    // A connection that was ended is not picked up again.
    let flows = "[flows]\nmax = \"64k\"\npick_up_tcp = \"never\"\n";
    let lab = Lab::with_config(Options::default(), &format!("{rules}{flows}"))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    let server = SocketAddr::new(lab.server(Family::V4), 7);
    let mut stream = EchoConnection::open(lab.client(), server)?;
    stream.ping()?;
    let appliance = &lab.net.appliance;
    let told = [
        ("unreachable 203.0.113.20", "203.0.113.20", "route: unreachable", "dropped as route_unreachable"),
        ("blackhole 203.0.113.21", "203.0.113.21", "route: a blackhole", "dropped as route_blackhole"),
        ("prohibit 203.0.113.22", "203.0.113.22", "route: prohibited", "dropped as route_prohibited"),
        (
            "203.0.113.23 via 198.51.100.77",
            "203.0.113.23",
            "by outside via 198.51.100.77\n",
            "when 198.51.100.77 has answered",
        ),
        ("203.0.113.24 via inet6 2001:db8:1:ff::77", "203.0.113.24", "by outside via 2001:db8:1:ff::77\n", "forwarded"),
        ("unreachable 2001:db8:3::20", "2001:db8:3::20", "route: unreachable", "dropped as route_unreachable"),
        ("blackhole 2001:db8:3::21", "2001:db8:3::21", "route: a blackhole", "dropped as route_blackhole"),
    ];
    for (kind, address, route, end) in told {
        appliance.ip(&format!("route add {kind}"))?;
        let flow = match address.contains(':') {
            true => format!("[2001:db8:1::10]:1 -> [{address}]:80/udp in inside"),
            false => format!("10.0.1.10:1 -> {address}:80/udp in inside"),
        };
        let said = lab.appliance.ask(&["explain", &flow])?;
        ensure!(said.contains(route) && said.contains(end), "{said}");
    }
    let own = lab.appliance.ask(&["explain", "10.0.1.1:1 -> 203.0.113.10:80/tcp"]);
    let refused = own.err().context("a source of the appliance's own enters nowhere")?.to_string();
    ensure!(refused.contains("in IFACE"), "{refused}");
    appliance.ip("route add unreachable 203.0.113.10")?;
    let said = lab.appliance.ask(&["explain", "10.0.1.10:1 -> 203.0.113.10:7/tcp in inside"])?;
    ensure!(said.contains("rule `rest`") && said.contains("dropped as policy"), "{said}");
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            let refused = || Ok(lab.appliance.status()?.drops()?.contains_key("route_unreachable"));
            wait_until("a packet was refused", Duration::from_secs(20), refused)?;
            appliance.ip("route del unreachable 203.0.113.10")
        });
        // One is sent while there is no way, and waits; TCP sends it again.
        while !back.is_finished() {
            stream.ping()?;
        }
        back.join().expect("the thread does not panic")
    })?;
    stream.ping()
}

/// A flood of SYNs from invented sources and of datagrams from one: what is established goes on, the other side may begin,
/// and everything that was refused has been counted.
#[test]
fn a_flood_takes_room_from_nobody() -> Result<()> {
    let config = "[flows]\nmax = \"4k\"\n[firewall]\ndefault = { outside = \"allow\" }\n\
        [firewall.limits]\nunanswered_percent = 50\nnew_per_second_per_source = 200\nflows_per_source = 300\n";
    let lab = Lab::with_config(Options { clients: 2, ..Options::default() }, config)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 64)?;
    lab.net.world.ip("route add blackhole 203.0.113.99/32")?;
    let server = SocketAddr::new(lab.server(Family::V4), 7);
    let mut streams = (0..20).map(|_| EchoConnection::open(lab.client(), server)).collect::<Result<Vec<_>>>()?;
    // Sources that are invented, and few enough packets of each that no source is over its limit.
    let mac = forwarder_kit::sniff::mac(&lab.net.appliance, "outside")?;
    let world = forwarder_kit::sniff::Sniffer::open(&lab.net.world, "app")?;
    let flood = |from: std::ops::Range<u32>| -> Result<()> {
        for n in from {
            let source = std::net::Ipv4Addr::from_bits(0x2d00_0000 + n * 7919).to_string();
            let packet = forwarder_kit::Packet::between(&source, "10.0.1.10").macs([2; 6], mac);
            world.inject(&packet.tcp(1024, 80, forwarder_kit::packet::flag::SYN, n).build())?;
        }
        Ok(())
    };
    flood(0..6000)?;
    let drops = lab.appliance.status()?.drops()?;
    let refused = drops.get("unanswered_limit").copied().unwrap_or(0);
    ensure!((3000..6000).contains(&refused), "{drops:?}");
    ensure!(drops.get("table_full").is_none_or(|count| *count == 0), "{drops:?}");
    for stream in &mut streams {
        stream.ping().context("an established connection was a victim of SYNs")?;
    }
    EchoConnection::open(lab.client(), server).context("the other side has its own share")?.ping()?;
    // One client that floods is held back alone.
    lab.net.clients[1].enter(|| {
        for port in 0..2000u16 {
            UdpSocket::bind(("0.0.0.0", 10_000 + port))?.send_to(b"flood", "203.0.113.99:9")?;
        }
        Ok(())
    })?;
    let drops = lab.appliance.status()?.drops()?;
    let held = ["source_rate", "source_flows"].map(|reason| drops.get(reason).copied().unwrap_or(0));
    ensure!(held.iter().sum::<u64>() >= 1600, "{drops:?}");
    EchoConnection::open(lab.client(), server).context("another client's flood is none of ours")?.ping()?;
    for stream in &mut streams {
        stream.ping().context("an established connection was a victim of datagrams")?;
    }
    Ok(())
}
