//! Floods at the generator's full rate, from outside and from inside, while a thousand idle connections and iperf3 live on:
//! nothing of theirs breaks, and every packet of the flood has arrived or was refused under a name, exactly.

use anyhow::{Context, Result, bail, ensure};
use forwarder_bench::load::{Load, Program, Slot};
use forwarder_ebpf::abi::{LoadConfig, LoadStation};
use forwarder_kit::Netns;
use forwarder_kit::run::{PATIENCE, Running, wait_until};
use forwarder_kit::sniff::mac;
use forwarder_kit::status::Flow;
use forwarder_kit::topology::Options;
use forwarder_tests::{EchoConnection, Family, Lab};
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Connections that stay idle while a flood goes on.
const IDLE: usize = 1000;
/// How long iperf3 sends beside each flood, once it has got through.
const FLOOD: Duration = Duration::from_secs(3);
/// Flows of a flood, a packet each. A flood ends with them, at the latest: iperf3 may need long until it gets through, where the
/// link's ring is full for its packets as well, and a second packet of a flow would be none of a flood. It begins again then.
const FLOWS: u32 = 1 << 27;
/// Floods of a kind until iperf3 is done before one ends.
const ATTEMPTS: u32 = 4;

/// The world may begin connections with 10.0.64.0/18 and fd00:2::/96, which the first client routes: these are targets.
const CONFIG: &str = r#"
[flows]
max = "64k"

# What a flood leaves is forgotten before the next one.
[timeouts]
tcp_transitory = "3s"
udp = "3s"

[firewall.limits]
unanswered_percent = 50
new_per_second_per_source = 2000
flows_per_source = 3000

[[firewall.rule]]
name = "published"
action = "allow"
in = "outside"
destination = ["10.0.64.0/18", "fd00:2::/96"]
"#;

/// A lab under load, and everything that has to live on in it.
struct Siege {
    lab: Lab,
    load: Load,
    idle: Vec<EchoConnection>,
    _iperf: Running,
    _echo: tokio::runtime::Runtime,
}

/// Who floods whom.
struct Flood {
    /// What it is.
    name: &'static str,
    /// From the world, or else from the second client.
    outside: bool,
    /// 4 or 6.
    family: u32,
    /// SYNs, or else datagrams.
    syn: bool,
    /// Its sources: the first two bytes of many, or one.
    sources: ([u8; 4], bool),
    /// Whom it is sent to: from here on.
    targets: [u8; 4],
    /// Reasons that its packets may be refused for.
    reasons: &'static [&'static str],
    /// Which rule decides about it.
    rule: &'static str,
    /// Flows of others that this rule may decide about meanwhile: iperf3's.
    others: u64,
    /// Some of it is let through.
    arrives: bool,
    /// It takes its whole side's share of what nobody has answered, so that others on that side can begin nothing meanwhile.
    fills_share: bool,
}

/// What floods from the world have in common.
const FROM_WORLD: Flood = Flood {
    name: "",
    outside: true,
    family: 4,
    syn: true,
    sources: ([0; 4], false),
    targets: [10, 0, 64, 1],
    reasons: &[],
    rule: "published",
    others: 0,
    arrives: true,
    fills_share: false,
};

/// What floods from the second client have in common.
const FROM_INSIDE: Flood = Flood {
    name: "",
    outside: false,
    family: 4,
    syn: true,
    sources: ([0; 4], false),
    targets: [198, 18, 0, 1],
    reasons: &[],
    rule: "default, inside",
    others: 4,
    arrives: true,
    fills_share: false,
};

const FLOODS: [Flood; 8] = [
    Flood {
        name: "SYNs from the world that no rule allows",
        sources: ([45, 0, 0, 0], false),
        targets: [10, 0, 128, 1],
        reasons: &["policy"],
        rule: "default, outside",
        arrives: false,
        ..FROM_WORLD
    },
    Flood {
        name: "SYNs from the world to what is published",
        sources: ([45, 0, 0, 0], false),
        reasons: &["unanswered_limit"],
        ..FROM_WORLD
    },
    Flood {
        name: "datagrams from the world to what is published",
        syn: false,
        sources: ([46, 0, 0, 0], false),
        reasons: &["unanswered_limit"],
        ..FROM_WORLD
    },
    Flood {
        name: "IPv6 datagrams from the world to what is published",
        family: 6,
        syn: false,
        sources: ([48, 0, 0, 0], false),
        reasons: &["unanswered_limit", "source_flows", "source_rate"],
        ..FROM_WORLD
    },
    Flood {
        name: "IPv6 SYNs from the world to what is published",
        family: 6,
        sources: ([49, 0, 0, 0], false),
        reasons: &["unanswered_limit", "source_flows", "source_rate"],
        ..FROM_WORLD
    },
    Flood {
        name: "SYNs from one source in the world",
        sources: ([47, 1, 2, 3], true),
        reasons: &["source_rate", "source_flows"],
        ..FROM_WORLD
    },
    Flood {
        name: "SYNs from one client",
        sources: ([10, 0, 2, 10], true),
        reasons: &["source_rate", "source_flows"],
        ..FROM_INSIDE
    },
    Flood {
        name: "datagrams from inside, from invented sources",
        syn: false,
        sources: ([10, 99, 0, 0], false),
        reasons: &["unanswered_limit"],
        fills_share: true,
        ..FROM_INSIDE
    },
];

#[test]
fn floods_break_nothing_and_their_figures_add_up() -> Result<()> {
    let mut siege = Siege::begin()?;
    for flood in &FLOODS {
        let mut attempts = 0;
        while !siege.withstand(flood).with_context(|| flood.name)? {
            attempts += 1;
            ensure!(attempts < ATTEMPTS, "{}: iperf3 never got through as long as they came", flood.name);
        }
    }
    Ok(())
}

impl Siege {
    fn begin() -> Result<Self> {
        let lab = Lab::with_config(Options { clients: 2, ..Options::default() }, CONFIG)?;
        lab.net.appliance.ip("route add 10.0.64.0/18 via 10.0.1.10")?;
        lab.net.world.ip("route add 10.0.64.0/18 via 198.51.100.10")?;
        lab.net.appliance.ip("-6 route add fd00:2::/96 via 2001:db8:1::10")?;
        let server = SocketAddr::new(lab.server(Family::V4), 7);
        let echo = echo(&lab.net.server, server.port())?;
        // Neighbours are known before anything has to wait for them.
        for client in &lab.net.clients {
            client.run("ping", "-c 1 -W 20 -q 203.0.113.10")?;
            client.run("ping", "-c 1 -W 20 -q 2001:db8:3::10")?;
        }
        let mut load = Load::open()?;
        let ends = [(Slot::Client, &lab.net.clients[0], "eth0"), (Slot::Server, &lab.net.world, "app")];
        for (_, netns, name) in ends {
            netns.enter(|| load.attach(Program::Sink, if_nametoindex(name)?))?;
        }
        let iperf = lab.net.server.spawn("iperf3", "-s")?;
        let mut idle = Vec::new();
        for _ in 0..IDLE {
            idle.push(EchoConnection::open(lab.client(), server)?);
        }
        Ok(Self { lab, load, idle, _iperf: iperf, _echo: echo })
    }

    /// Floods, and looks at what came of it. Whether iperf3 was done before it ended.
    fn withstand(&mut self, flood: &Flood) -> Result<bool> {
        let Self { lab, load, .. } = self;
        let (from, name, to) = match flood.outside {
            true => (&lab.net.world, "app", "outside"),
            false => (&lab.net.clients[1], "eth0", "inside1"),
        };
        let stations = [LoadStation { to: mac(&lab.net.appliance, to)?, from: mac(from, name)? }; 2];
        let (clients, one_host) = (flood.sources.0, u32::from(flood.sources.1));
        load.configure(&LoadConfig {
            flows: FLOWS,
            step: 1,
            family: flood.family,
            directions: 1,
            stamp_mask: u32::MAX,
            one_host,
            syn: u32::from(flood.syn),
            clients,
            servers: flood.targets,
            stations,
            ..LoadConfig::default()
        })?;
        from.enter(|| load.lead(Slot::Client, if_nametoindex(name)?))?;
        let frame_bytes = if flood.family == 6 { 78 } else { 60 };
        let before = Figures::read(lab, flood)?;
        let running = if flood.fills_share { Some(iperf(lab, 2 * FLOOD)?) } else { None };
        let said = load.while_generating_up_to(0, frame_bytes, FLOWS, || match running {
            Some(running) => running.finish(),
            None => lab.client().run("iperf3", &iperf_arguments(FLOOD)),
        });
        let (said, in_time) = said.context("iperf3 broke")?;
        let sent_bytes = received(&said)?;
        ensure!(sent_bytes > 0, "iperf3 moved nothing");
        for (at, idle) in self.idle.iter_mut().enumerate() {
            idle.ping().with_context(|| format!("idle connection {at} of {IDLE}"))?;
        }
        self.check(flood, &before)?;
        // Its flows have ended, their room is free again, and limits go by that.
        wait_until("the flood to be forgotten", PATIENCE, || {
            let status = self.lab.appliance.status()?;
            Ok(status.flows()? < 2 * IDLE as u64 && status.room_taken()? < 2 * IDLE as u64)
        })?;
        self.lab.appliance.wait_for_sweep()?;
        Ok(in_time)
    }

    /// What came in was let through or refused, under the names that it has to be.
    fn check(&self, flood: &Flood, before: &Figures) -> Result<()> {
        let (counts, after) = (self.load.counts()?, Figures::read(&self.lab, flood)?);
        let refused: BTreeMap<_, _> = after
            .drops
            .iter()
            .map(|(reason, count)| (reason.as_str(), count - before.drops.get(reason).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let (sent, arrived, hits) = (counts.all_sent(), counts.all_arrived(), after.hits - before.hits);
        let came = sent - (after.not_in - before.not_in);
        let through = arrived..=arrived + after.not_out - before.not_out;
        let what = format!("{sent} sent, {came} came, {hits} hits, {through:?} got through, refused: {refused:?}");
        println!("{}: {what}", flood.name);
        ensure!(came > 100_000, "no flood: {what}");
        ensure!(through.contains(&(came - refused.values().sum::<u64>())), "{what}");
        ensure!((came..=came + flood.others).contains(&hits), "{what}");
        ensure!(refused.keys().all(|name| flood.reasons.contains(name)), "{what}");
        ensure!(flood.arrives == (arrived > 0), "{what}");
        Ok(())
    }
}

/// What has been counted up to now.
struct Figures {
    /// Packets that the appliance refused, by name.
    drops: BTreeMap<String, u64>,
    /// What the rule met that decides about the flood.
    hits: u64,
    /// Frames of the generator that found the link's ring full, as a NIC drops what it has no descriptor for.
    not_in: u64,
    /// The same of frames that the appliance sent, whosesoever.
    not_out: u64,
}

impl Figures {
    fn read(lab: &Lab, flood: &Flood) -> Result<Self> {
        let (from, name, out) = match flood.outside {
            true => (&lab.net.world, "app", "inside"),
            false => (&lab.net.clients[1], "eth0", "outside"),
        };
        let rules: serde_json::Value = serde_json::from_str(&lab.appliance.ask(&["rules", "--json"])?)?;
        let rule = rules.as_array().into_iter().flatten().find(|rule| rule["name"] == flood.rule);
        Ok(Self {
            drops: lab.appliance.status()?.drops()?,
            hits: rule.and_then(|rule| rule["hits"].as_u64()).with_context(|| format!("no rule {}", flood.rule))?,
            not_in: ring_full(from, name)?,
            not_out: ring_full(&lab.net.appliance, out)?,
        })
    }
}

fn iperf_arguments(length: Duration) -> String {
    format!("-c 203.0.113.10 -t {} -J", length.as_secs())
}

/// An iperf3 whose connections are established.
fn iperf(lab: &Lab, length: Duration) -> Result<Running> {
    let before = lab.appliance.flows()?;
    let running = lab.client().spawn("iperf3", &iperf_arguments(length))?;
    let is_new = |flow: &Flow| flow.destination.port() == 5201 && !before.iter().any(|old| old.source == flow.source);
    wait_until("iperf3 to be at it", PATIENCE, || {
        Ok(lab.appliance.flows()?.iter().any(|flow| is_new(flow) && flow.sent.0 > 100))
    })?;
    Ok(running)
}

/// Frames that XDP could not send by a veth interface.
fn ring_full(netns: &Netns, interface: &str) -> Result<u64> {
    let said = netns.run("ethtool", &format!("-S {interface}"))?;
    let mut lines = said.lines().filter_map(|line| line.trim().strip_prefix("tx_queue_0_xdp_xmit_errors: "));
    lines.next().and_then(|count| count.parse().ok()).with_context(|| format!("no such figure in {said}"))
}

/// Bytes that iperf3's server received.
fn received(said: &str) -> Result<u64> {
    let report: serde_json::Value = serde_json::from_str(said)?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    report.pointer("/end/sum_received/bytes").and_then(serde_json::Value::as_u64).context("no bytes received")
}

/// An echo server for any number of connections, and however long they are silent.
fn echo(netns: &Netns, port: u16) -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = netns.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        Ok(std::net::TcpListener::from(socket))
    })?;
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    // A client that is gone complains itself.
                    let _ = stream.write_all(&buffer[..length]).await;
                }
            });
        }
        #[expect(unreachable_code, reason = "says what the loop's errors are")]
        std::io::Result::Ok(())
    });
    Ok(runtime)
}
