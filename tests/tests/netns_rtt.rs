//! Round trips in flow log records: measured from the handshakes of real connections, over wires that are slow on purpose.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::slow::SlowWire;
use forwarder_kit::topology::{Options, Shape};
use forwarder_tests::records::{Log, Record, number};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE, in_both_shapes};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const FORMAT: &str = "${interface-id} ${flow-direction} ${pkt-srcaddr} ${pkt-dstaddr} ${srcaddr} ${dstaddr} ${srcport} \
                      ${dstport} ${protocol} ${packets} ${initiated-by} ${rtt-src} ${rtt-dst} ${log-status}";

/// What each side's wire adds to a round trip: the delay of what it sends.
const CLIENTS_MS: u64 = 20;
const SERVERS_MS: u64 = 60;
/// How much longer a round trip may have taken on a busy machine.
const SLACK_MS: u64 = 35;

in_both_shapes! {
    every_record_tells_both_round_trips
}

/// A directory, a log in it, and the lab that writes it; the lab goes first.
fn logged(shape: Shape) -> Result<(tempfile::TempDir, Log, Lab)> {
    let directory = tempfile::tempdir()?;
    let log = Log::new(&directory.path().join("flow.log"), FORMAT);
    let lab = Lab::with_config(Options { shape, ..Options::default() }, &format!("{SMALL_TABLE}{}", log.config()))?;
    Ok((directory, log, lab))
}

/// Slow wires at both ends. Before that everybody's link-layer address is known: who waits for one is slower still.
fn slow_down(lab: &Lab) -> Result<[SlowWire; 2]> {
    get_acquainted(lab)?;
    let wire = |netns, delay| SlowWire::of(netns, Duration::from_millis(delay));
    Ok([wire(lab.client(), CLIENTS_MS)?, wire(&lab.net.server, SERVERS_MS)?])
}

fn get_acquainted(lab: &Lab) -> Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| {
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family))).map(drop)
    })
}

/// The two round trips of a record, microseconds; `None` where one is not known.
fn round_trips(record: &Record) -> Option<(u64, u64)> {
    Some((record["rtt-src"].parse().ok()?, record["rtt-dst"].parse().ok()?))
}

fn is_about(rtt_us: u64, delay_ms: u64) -> bool {
    (delay_ms * 1000..(delay_ms + SLACK_MS) * 1000).contains(&rtt_us)
}

fn every_record_tells_both_round_trips(shape: Shape) -> Result<()> {
    let (_directory, log, mut lab) = logged(shape)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    let _udp = serve::udp_echo(&lab.net.server, &[9000])?;
    let _wires = slow_down(&lab)?;
    let mut connections = Vec::new();
    for family in Family::BOTH {
        let mut connection = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7))?;
        connection.ping()?;
        connections.push((family, connection.local()?, connection));
        datagram(&lab, family)?;
    }
    // The windows after the first one tell it as well.
    wait_until("the first windows to end", PATIENCE, || {
        let records = log.read()?;
        let has_all = |(family, source, _): &(Family, SocketAddr, EchoConnection)| {
            places(&lab, *family, *source).iter().all(|place| records.iter().any(|record| place.is_of(record)))
        };
        Ok(connections.iter().all(has_all))
    })?;
    for (_, _, connection) in &mut connections {
        connection.ping()?;
    }
    for flow in lab.appliance.flows()? {
        let known = match (flow.protocol, flow.round_trips_us) {
            (6, [Some(client), Some(server)]) => is_about(client, CLIENTS_MS) && is_about(server, SERVERS_MS),
            (protocol, known) => protocol != 6 && known == [None, None],
        };
        ensure!(known, "listed as {}", flow.json);
    }
    lab.appliance.stop()?;
    let records: Vec<_> = log.read()?.into_iter().filter(|record| record["log-status"] == "OK").collect();
    for (family, source, _) in &connections {
        of_connection(&lab, *family, *source, &records).with_context(|| format!("{family:?}: {records:#?}"))?;
    }
    let mut others = records.iter().filter(|record| record["protocol"] != "6").peekable();
    ensure!(others.peek().is_some(), "there was UDP as well: {records:#?}");
    ensure!(
        others.all(|record| record["rtt-src"] == "-" && record["rtt-dst"] == "-"),
        "only TCP has handshakes: {records:#?}"
    );
    Ok(())
}

/// Where a connection is seen, and the delays to its source and destination there.
#[derive(Debug)]
struct Place {
    interface: String,
    direction: &'static str,
    from: IpAddr,
    to: IpAddr,
    delays_ms: (u64, u64),
}

impl Place {
    fn is_of(&self, record: &Record) -> bool {
        record["protocol"] == "6"
            && record["interface-id"] == self.interface
            && record["flow-direction"] == self.direction
            && record["pkt-srcaddr"].parse::<IpAddr>() == Ok(self.from)
            && record["pkt-dstaddr"].parse::<IpAddr>() == Ok(self.to)
    }
}

/// In by the client's side, out by the server's, and back.
fn places(lab: &Lab, family: Family, source: SocketAddr) -> [Place; 4] {
    let (client, server, seen) = (source.ip(), lab.server(family), lab.seen(family));
    let (inside, outside) = (lab.net.inside(0), lab.net.outside().to_owned());
    let (there, back) = ((CLIENTS_MS, SERVERS_MS), (SERVERS_MS, CLIENTS_MS));
    let place = |interface: &String, direction, from, to, delays_ms| Place {
        interface: interface.clone(),
        direction,
        from,
        to,
        delays_ms,
    };
    [
        place(&inside, "ingress", client, server, there),
        place(&outside, "egress", seen, server, there),
        place(&outside, "ingress", server, seen, back),
        place(&inside, "egress", server, client, back),
    ]
}

/// At each place in two windows or more.
fn of_connection(lab: &Lab, family: Family, source: SocketAddr, records: &[Record]) -> Result<()> {
    for place in places(lab, family, source) {
        let (source_ms, destination_ms) = place.delays_ms;
        let found: Vec<_> = records.iter().filter(|record| place.is_of(record)).collect();
        ensure!(found.len() >= 2, "{} records of {place:?}", found.len());
        // The first window may have ended before the handshake did.
        let unfinished = usize::from(round_trips(found[0]).is_none() && number(found[0], "packets") <= 2);
        for record in &found[unfinished..] {
            let (to_source, to_destination) = round_trips(record).context("a record without round trips")?;
            ensure!(
                is_about(to_source, source_ms) && is_about(to_destination, destination_ms),
                "{to_source} and {to_destination} us in {record:?}"
            );
        }
    }
    Ok(())
}

fn datagram(lab: &Lab, family: Family) -> Result<()> {
    let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
    lab.client().enter(|| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"hello", (lab.server(family), 9000))?;
        socket.recv(&mut [0; 16]).context("no answer")?;
        Ok(())
    })
}

/// The cells are pinned: a controller that was killed, and one of the next version, still know of the connections that live.
#[test]
fn a_new_controller_knows_the_round_trips_of_old_connections() -> Result<()> {
    let (_directory, log, mut lab) = logged(Shape::TwoArmed)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    let _wires = slow_down(&lab)?;
    let mut connection = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    connection.ping()?;
    lab.appliance.kill9()?;
    let before = log.read().map_or(0, |records| records.len());
    lab.appliance.start_again()?;
    connection.ping()?;
    let tcp = |records: Vec<Record>| -> Vec<_> {
        records.into_iter().skip(before).filter(|record| record["protocol"] == "6").collect()
    };
    wait_until("records of the new one", PATIENCE, || Ok(tcp(log.read()?).len() >= 4))?;
    connection.ping()?;
    lab.appliance.stop()?;
    let records = tcp(log.read()?);
    for record in &records {
        let trips = round_trips(record).with_context(|| format!("{records:#?}"))?;
        let (source, destination) =
            if record["pkt-srcaddr"] == lab.net.server_v4().to_string() { trips } else { (trips.1, trips.0) };
        ensure!(is_about(source, SERVERS_MS) && is_about(destination, CLIENTS_MS), "{record:?}");
    }
    Ok(())
}

/// Which of two SYNs, or SYN-ACKs, was answered cannot be told: then that side is not known, and the other one is.
#[test]
fn what_was_sent_again_is_not_measured() -> Result<()> {
    let (_directory, log, mut lab) = logged(Shape::TwoArmed)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7, 8], 2)?;
    get_acquainted(&lab)?;
    // The first SYN is lost behind the appliance, and sent again after a second (RFC 6298 §2.1).
    lab.net.server.run("nft", "add table ip lossy")?;
    lab.net.server.run("nft", "add chain ip lossy in { type filter hook input priority 0 ; }")?;
    lab.net
        .server
        .run("nft", "add rule ip lossy in tcp dport 7 tcp flags syn limit rate 1/minute burst 1 packets drop")?;
    // The first SYN-ACK is lost at the client.
    lab.client().run("nft", "add table ip lossy")?;
    lab.client().run("nft", "add chain ip lossy in { type filter hook input priority 0 ; }")?;
    lab.client().run(
        "nft",
        "add rule ip lossy in tcp sport 8 tcp flags & (syn|ack) == syn|ack limit rate 1/minute burst 1 packets drop",
    )?;
    let mut connections = Vec::new();
    for port in [7, 8] {
        let mut connection = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), port))?;
        connection.ping()?;
        connections.push(connection);
    }
    lab.appliance.stop()?;
    let records = log.read()?;
    let of = |port: &str| -> Vec<_> {
        let those = records.iter().filter(|record| record["protocol"] == "6" && record["dstport"] == port);
        those.map(|record| (record["rtt-src"] != "-", record["rtt-dst"] != "-")).collect()
    };
    let (first, second) = (of("7"), of("8"));
    ensure!(first.contains(&(true, false)), "{records:#?}");
    ensure!(first.iter().all(|(_, destination)| !destination), "its SYN was sent twice: {records:#?}");
    ensure!(!second.is_empty() && second.iter().all(|(source, _)| !source), "its SYN-ACK was sent twice: {records:#?}");
    Ok(())
}
