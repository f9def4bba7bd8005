//! Flow logs of real traffic: every packet that the ends saw is in the records, as AWS would write them.

use anyhow::{Context, Result, ensure};
use forwarder_kit::serve;
use forwarder_kit::topology::Shape;
use forwarder_tests::{Family, Lab, SMALL_TABLE, in_both_shapes};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUESTIONS: u64 = 500;
const SIZE: usize = 100;

in_both_shapes! {
    records_are_exact_and_those_of_awss_nat_example
    what_is_refused_is_counted_exactly
}

/// A record by its fields' names.
type Record = BTreeMap<String, String>;

fn lab(shape: Shape, log: &Path, format: &str, more: &str) -> Result<Lab> {
    let config = format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\n{more}\n\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\nformat = \"{format}\"\n",
        log.display()
    );
    Lab::with_config(forwarder_kit::topology::Options { shape, ..Default::default() }, &config)
}

fn read(log: &Path, format: &str) -> Result<Vec<Record>> {
    let names: Vec<_> = format.split(' ').map(|word| word.trim_matches(['$', '{', '}']).to_owned()).collect();
    let text = std::fs::read_to_string(log).with_context(|| format!("no log at {}", log.display()))?;
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    let record = |line: &str| {
        let fields: Vec<_> = line.split(' ').map(str::to_owned).collect();
        ensure!(fields.len() == names.len(), "{line} has not the fields of {format}");
        Ok(names.iter().cloned().zip(fields).collect())
    };
    text.lines().map(record).collect()
}

fn number(record: &Record, name: &str) -> u64 {
    record[name].parse().unwrap_or(0)
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
    let _ = lab.net.server.run("curl", &format!("-g -s --connect-timeout 2 http://[{client}]:81/"));
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

/// One at a time, each answered: so both ends know exactly how many there were. Returns the client's end.
fn ask_and_answer(lab: &Lab, family: Family) -> Result<SocketAddr> {
    lab.client().enter(|| {
        let own: IpAddr = match family {
            Family::V4 => lab.net.client_v4(0).into(),
            Family::V6 => lab.net.client_v6(0).into(),
        };
        let socket = UdpSocket::bind((own, 0))?;
        socket.connect(SocketAddr::new(lab.server(family), 9000))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
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
