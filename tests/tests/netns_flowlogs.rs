//! Flow logs of real traffic: every packet that the ends saw is in the records, as AWS would write them.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Shape;
use forwarder_tests::records::{Record, number, read};
use forwarder_tests::{Family, Lab, SMALL_TABLE, in_both_shapes};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUESTIONS: u64 = 500;
const SIZE: usize = 100;

in_both_shapes! {
    records_are_exact_and_those_of_awss_nat_example
    what_is_refused_is_counted_exactly
}

fn lab(shape: Shape, log: &Path, format: &str, more: &str) -> Result<Lab> {
    let config = format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\n{more}\n\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\nformat = \"{format}\"\n",
        log.display()
    );
    Lab::with_config(forwarder_kit::topology::Options { shape, ..Default::default() }, &config)
}

const FORMAT: &str = "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} ${protocol} \
                      ${packets} ${bytes} ${start} ${end} ${action} ${log-status} ${pkt-srcaddr} ${pkt-dstaddr} \
                      ${flow-direction} ${tcp-flags} ${type} ${nat-srcaddr} ${initiated-by} ${forwarder-direction}";

fn records_are_exact_and_those_of_awss_nat_example(shape: Shape) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log: PathBuf = directory.path().join("flow.log");
    let mut lab = lab(shape, &log, FORMAT, "")?;
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    let mut sources = Vec::new();
    for family in Family::BOTH {
        sources.push(ask_and_answer(&lab, family)?);
    }
    ensure!(server.requests() == 2 * QUESTIONS, "the server saw {} datagrams", server.requests());
    lab.appliance.stop()?;
    let records = read(&log, FORMAT)?;
    for (family, source) in Family::BOTH.into_iter().zip(sources) {
        four_records(&lab, family, source, &records)?;
    }
    ensure!(records.iter().all(|record| record["log-status"] != "SKIPDATA"), "something is said to be lost");
    ensure!(records.iter().all(|record| record["account-id"] == "123456789012"), "the account is configured");
    Ok(())
}

/// In by the client's side, out by the server's, and back.
fn four_records(lab: &Lab, family: Family, source: SocketAddr, records: &[Record]) -> Result<()> {
    let (client, server, seen) = (source.ip(), lab.server(family), lab.seen(family));
    let (inside, outside) = (lab.net.inside(0), lab.net.outside().to_owned());
    let bytes = QUESTIONS * (SIZE + 8 + if family == Family::V4 { 20 } else { 40 }) as u64;
    let own = |interface: &str, packets: IpAddr| -> IpAddr {
        match (family, interface) {
            (Family::V4, "inside") => [10, 0, 1, 1].into(),
            (Family::V4, _) => lab.net.public_v4(0).into(),
            (Family::V6, "inside") => "2001:db8:1::1".parse().unwrap_or(packets),
            (Family::V6, _) => lab.net.public_v6().into(),
        }
    };
    let expected = [
        (&inside, "ingress", client, own(&inside, server), client, server),
        (&outside, "egress", own(&outside, client), server, seen, server),
        (&outside, "ingress", server, own(&outside, seen), server, seen),
        (&inside, "egress", own(&inside, server), client, server, client),
    ];
    for (interface, direction, srcaddr, dstaddr, pkt_srcaddr, pkt_dstaddr) in expected {
        let is_it = |record: &&Record| {
            let address = |name: &str| record[name].parse().ok();
            record["interface-id"] == *interface
                && record["flow-direction"] == direction
                && record["protocol"] == "17"
                && address("pkt-srcaddr") == Some(pkt_srcaddr)
                && address("pkt-dstaddr") == Some(pkt_dstaddr)
                && address("srcaddr") == Some(srcaddr)
                && address("dstaddr") == Some(dstaddr)
        };
        let found: Vec<_> = records.iter().filter(is_it).collect();
        let sum = |name: &str| found.iter().map(|record| number(record, name)).sum::<u64>();
        let all = || records.iter().map(|record| format!("{record:?}\n")).collect::<String>();
        ensure!(
            (sum("packets"), sum("bytes")) == (QUESTIONS, bytes),
            "{family:?}: {interface} {direction} {srcaddr} {dstaddr} has {} packets and {} bytes in\n{}",
            sum("packets"),
            sum("bytes"),
            all()
        );
        let right = |record: &&&Record| {
            let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
            record["action"] == "ACCEPT" && record["type"] == kind && number(record, "start") <= number(record, "end")
        };
        ensure!(found.iter().all(|record| right(&record)), "{family:?}: {found:?}");
    }
    Ok(())
}

/// Whoever begins from outside is refused, and so is a packet whose TTL is used up.
fn what_is_refused_is_counted_exactly(shape: Shape) -> Result<()> {
    const FORMAT: &str = "${interface-id} ${pkt-srcaddr} ${pkt-dstaddr} ${protocol} ${packets} ${bytes} ${action} \
                          ${flow-direction} ${tcp-flags} ${drop-reason} ${log-status} ${dstport} ${nat-srcaddr}";
    const PINGS: u64 = 40;
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flow.log");
    let mut lab = lab(shape, &log, FORMAT, "filter = \"reject\"")?;
    let (client, server) = (lab.net.client_v6(0), lab.net.server_v6());
    // Nobody answers; what matters is that they were sent.
    let _ = lab.net.server.run("ping", &format!("-c {PINGS} -i 0.05 -W 1 -q {client}"));
    let _ = lab.net.server.run("curl", &format!("-g -s --connect-timeout 4 http://[{client}]:81/"));
    let hops = if shape == Shape::OneArmed { 2 } else { 1 };
    let _ = lab.client().run("ping", &format!("-c {PINGS} -i 0.05 -W 1 -t {hops} -q {}", lab.net.server_v4()));
    let status = lab.appliance.status()?;
    lab.appliance.stop()?;
    let records = read(&log, FORMAT)?;
    let sum = |name: &str, field: &str, value: &str, reason: &str| -> u64 {
        let of = records.iter().filter(|record| record["drop-reason"] == reason && record[field] == value);
        of.map(|record| number(record, name)).sum()
    };
    let pinged = |name: &str| sum(name, "protocol", "58", "policy");
    ensure!((pinged("packets"), pinged("bytes")) == (PINGS, PINGS * (64 + 40)), "{records:?}");
    let expired = |name: &str| sum(name, "protocol", "1", "ttl_exceeded");
    ensure!((expired("packets"), expired("bytes")) == (PINGS, PINGS * 84), "{records:?}");
    let syns = sum("packets", "dstport", "81", "policy");
    ensure!(syns >= 2, "curl tries again after a second: {records:?}");
    for record in records.iter().filter(|record| record["log-status"] == "OK") {
        ensure!(record["action"] == "REJECT" && record["flow-direction"] == "ingress", "{record:?}");
        let syn = if record["protocol"] == "6" { "2" } else { "0" };
        ensure!(record["tcp-flags"] == syn && record["nat-srcaddr"] == "-", "{record:?}");
        let from = if record["protocol"] == "1" { lab.net.inside(0) } else { lab.net.outside().to_owned() };
        ensure!(record["interface-id"] == from, "{record:?}");
    }
    ensure!(records.iter().any(|record| record["pkt-srcaddr"] == server.to_string()), "{records:?}");
    // Not one more and not one less than the datapath dropped.
    let dropped: u64 = status.drops()?.values().sum();
    let logged: u64 = records.iter().map(|record| number(record, "packets")).sum();
    ensure!(logged == dropped, "{dropped} were dropped and {logged} logged: {:?}\n{records:?}", status.drops()?);
    Ok(())
}

/// A next hop that nobody has: the controller holds what goes there, gives it up, and each packet is a REJECT record.
#[test]
fn what_the_controller_gives_up_is_counted_exactly() -> Result<()> {
    const FORMAT: &str = "${interface-id} ${pkt-srcaddr} ${pkt-dstaddr} ${protocol} ${dstport} ${packets} ${bytes} ${action} \
                          ${tcp-flags} ${drop-reason} ${log-status}";
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flow.log");
    let mut lab = lab(Shape::TwoArmed, &log, FORMAT, "")?;
    // The way to the appliance itself is known before anything is counted.
    for own in ["10.0.1.1", "2001:db8:1::1"] {
        lab.client().run("ping", &format!("-c 2 -i 0.2 -W 2 -q {own}"))?;
    }
    let nobodies: [IpAddr; 2] = ["198.51.100.77".parse()?, "2001:db8:1:ff::77".parse()?];
    lab.client().enter(|| {
        for (nobody, any) in nobodies.into_iter().zip(["0.0.0.0:0", "[::]:0"]) {
            let socket = UdpSocket::bind(any)?;
            // More than may wait for one next hop, so some are given up at once.
            for _ in 0..QUESTIONS {
                socket.send_to(&[0; SIZE], (nobody, 9))?;
            }
        }
        Ok(())
    })?;
    let dropped = || anyhow::Ok(lab.appliance.status()?.drops()?.get("neighbour_unknown").copied().unwrap_or(0));
    wait_until("everything to be given up", PATIENCE, || Ok(dropped()? >= 2 * QUESTIONS))?;
    ensure!(dropped()? == 2 * QUESTIONS, "{} were sent and {} dropped", 2 * QUESTIONS, dropped()?);
    lab.appliance.stop()?;
    let records = read(&log, FORMAT)?;
    for (nobody, header) in nobodies.into_iter().zip([28, 48]) {
        let is_it = |record: &&Record| record["pkt-dstaddr"].parse() == Ok(nobody) && record["protocol"] == "17";
        let sum = |name: &str| records.iter().filter(is_it).map(|record| number(record, name)).sum::<u64>();
        let expected = (QUESTIONS, QUESTIONS * (SIZE as u64 + header));
        ensure!((sum("packets"), sum("bytes")) == expected, "{nobody}: {records:?}");
        let right = |record: &&Record| {
            let words = ["action", "drop-reason", "interface-id", "dstport", "tcp-flags"].map(|name| &*record[name]);
            words == ["REJECT", "neighbour_unknown", lab.net.inside(0).as_str(), "9", "0"]
        };
        ensure!(records.iter().filter(is_it).all(|record| right(&record)), "{nobody}: {records:?}");
    }
    ensure!(records.iter().all(|record| record["log-status"] != "SKIPDATA"), "something is said to be lost");
    Ok(())
}

const RULES: &str = r#"
[[firewall.rule]]
name = "NAME"
action = "allow"
in = "inside"
protocol = "udp"
destination_ports = ["9000"]

[[firewall.rule]]
name = "no telnet"
action = "reject"
in = "inside"
protocol = "tcp"
destination_ports = ["23"]
"#;

/// Records name the rule that let a flow pass or refused it; also when it goes by another name from now on.
#[test]
fn rules_are_named_also_after_a_reload() -> Result<()> {
    const FORMAT: &str = "${dstport} ${srcport} ${action} ${packets} ${rule-name} ${drop-reason} ${log-status}";
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flow.log");
    let mut lab = lab(Shape::TwoArmed, &log, FORMAT, &RULES.replace("NAME", "the first"))?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    let server = lab.server(Family::V4);
    let socket = lab.client().enter(|| Ok(UdpSocket::bind((lab.net.client_v4(0), 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let ask = |count| -> Result<()> {
        for _ in 0..count {
            socket.send_to(&[0; SIZE], (server, 9000))?;
            socket.recv(&mut [0; 2 * SIZE]).context("no answer")?;
        }
        Ok(())
    };
    let sum = |records: &[Record], field: &str, port: &str, rule: &str, action: &str| -> u64 {
        let of = |record: &&Record| record[field] == port && record["rule-name"] == rule && record["action"] == action;
        records.iter().filter(of).map(|record| number(record, "packets")).sum()
    };
    // In and out, each way.
    let of = |records: &[Record], rule| {
        (sum(records, "dstport", "9000", rule, "ACCEPT"), sum(records, "srcport", "9000", rule, "ACCEPT"))
    };
    ask(10)?;
    wait_until("the first records", PATIENCE, || Ok(of(&read(&log, FORMAT)?, "the_first") == (20, 20)))?;
    let config = std::fs::read_to_string(lab.appliance.scratch().join("forwarder.toml"))?;
    lab.appliance.write_config(&config.replace("the first", "the second"))?;
    lab.appliance.ask(&["reload"])?;
    ask(7)?;
    // Refused with an RST.
    let _ = lab.client().run("curl", &format!("-s --connect-timeout 20 telnet://{server}:23/"));
    lab.appliance.stop()?;
    let records = read(&log, FORMAT)?;
    ensure!(of(&records, "the_first") == (20, 20) && of(&records, "the_second") == (14, 14), "{records:?}");
    ensure!(sum(&records, "dstport", "23", "no_telnet", "REJECT") == 1, "{records:?}");
    ensure!(records.iter().all(|record| record["log-status"] != "OK" || record["rule-name"] != "-"), "{records:?}");
    Ok(())
}

/// A server whose answers are lost for a while: each window with a SYN says so, also when it is not the first one; and windows of
/// data say nothing.
#[test]
fn each_window_has_the_tcp_flags_that_came_in_it() -> Result<()> {
    const FORMAT: &str =
        "${interface-id} ${flow-direction} ${pkt-srcaddr} ${protocol} ${tcp-flags} ${packets} ${log-status}";
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flow.log");
    let mut lab = lab(Shape::TwoArmed, &log, FORMAT, "")?;
    let _echo = serve::tcp_echo(&lab.net.server, &[7], 1)?;
    let (client, server, seen) = (lab.client(), lab.server(Family::V4), lab.seen(Family::V4));
    client.run("ping", &format!("-c 1 -W 2 -q {server}"))?;
    lab.net.server.ip(&format!("route add blackhole {seen}"))?;
    let of = |sender: IpAddr, direction: &str| -> Result<Vec<u64>> {
        let is_it = |record: &Record| {
            record["protocol"] == "6"
                && record["flow-direction"] == direction
                && record["pkt-srcaddr"] == sender.to_string()
        };
        Ok(read(&log, FORMAT)?
            .iter()
            .filter(|record| is_it(record))
            .map(|record| number(record, "tcp-flags"))
            .collect())
    };
    let mut connection = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            client.enter(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(server, 7), Duration::from_secs(60))?))
        });
        let three = || Ok(of(lab.net.client_v4(0).into(), "ingress")?.len() >= 3);
        wait_until("three windows with a SYN", Duration::from_secs(30), three)?;
        lab.net.server.ip(&format!("route del blackhole {seen}"))?;
        opening.join().expect("who connects does not panic")
    })?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1500));
        connection.write_all(b"data")?;
        connection.read_exact(&mut [0; 4])?;
    }
    std::thread::sleep(Duration::from_millis(1500));
    drop(connection);
    wait_until("the connection to end", Duration::from_secs(30), || {
        Ok(lab.appliance.flows()?.iter().any(|flow| flow.json["state"] == "closing"))
    })?;
    lab.appliance.stop()?;
    for (sender, direction, syn) in [
        (lab.net.client_v4(0).into(), "ingress", 2),
        (seen, "egress", 2),
        (server, "ingress", 18),
        (server, "egress", 18),
    ] {
        let flags = of(sender, direction)?;
        let opening = flags.iter().take_while(|flags| **flags == syn).count();
        let silent = flags[opening..].iter().take_while(|flags| **flags == 0).count();
        let least = if syn == 2 { 4 } else { 1 };
        ensure!(opening >= least && silent >= 2, "{sender} {direction}: {flags:?}");
        ensure!(flags[opening + silent..] == [1], "{sender} {direction}: FIN is in the last window alone: {flags:?}");
    }
    Ok(())
}

/// One at a time, each answered: so both ends know exactly how many there were. Returns the client's end.
fn ask_and_answer(lab: &Lab, family: Family) -> Result<SocketAddr> {
    lab.client().enter(|| {
        let own: IpAddr = match family {
            Family::V4 => lab.net.client_v4(0).into(),
            Family::V6 => lab.net.client_v6(0).into(),
        };
        let socket = UdpSocket::bind((own, 0))?;
        socket.connect(SocketAddr::new(lab.server(family), 9000))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut buffer = [0; 2 * SIZE];
        for number in 0..QUESTIONS {
            socket.send(&[number as u8; SIZE])?;
            let length = socket.recv(&mut buffer).with_context(|| format!("question {number} was not answered"))?;
            ensure!(length == SIZE, "{length} bytes came back");
            // Over several windows.
            std::thread::sleep(Duration::from_millis(4));
        }
        socket.local_addr().context("cannot read the own address")
    })
}
