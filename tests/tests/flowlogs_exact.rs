//! Flow logs under load: whatever ends, comes again, is refused or changes meanwhile, the records add up to what the ends
//! have counted, to the packet and byte.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, run, wait_until};
use forwarder_kit::topology::Options;
use forwarder_kit::{Netns, serve};
use forwarder_tests::records::{Log, Record, sum};
use forwarder_tests::{Family, Lab, SMALL_TABLE, snmp};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::Duration;

const FORMAT: &str = "${interface-id} ${flow-direction} ${pkt-srcaddr} ${pkt-dstaddr} ${srcport} ${dstport} ${protocol} \
                      ${packets} ${bytes} ${action} ${drop-reason} ${log-status}";

/// What comes in from the clients' side, or from the servers'.
fn from(lab: &Lab, records: &[Record], source: Ipv4Addr, is_meant: impl Fn(&Record) -> bool) -> (u64, u64) {
    let interface = if source == lab.net.server_v4() { lab.net.outside().to_owned() } else { lab.net.inside(0) };
    sum(records, |record| {
        record["interface-id"] == interface
            && record["flow-direction"] == "ingress"
            && record["pkt-srcaddr"] == source.to_string()
            && is_meant(record)
    })
}

/// The same connections as they leave on the other side.
fn onward(lab: &Lab, records: &[Record], destination: Ipv4Addr) -> (u64, u64) {
    let interface = if destination == lab.net.server_v4() { lab.net.outside().to_owned() } else { lab.net.inside(0) };
    sum(records, |record| {
        record["interface-id"] == interface
            && record["flow-direction"] == "egress"
            && record["pkt-dstaddr"] == destination.to_string()
    })
}

fn nothing_lost(records: &[Record]) -> Result<()> {
    ensure!(records.iter().all(|record| record["log-status"] != "SKIPDATA"), "something is said to be lost");
    Ok(())
}

/// IPv4 packets and bytes that a namespace's own kernel has sent (RFC 4293 `ipSystemStatsOutTransmits`, `…OutOctets`).
fn sent_by(netns: &Netns) -> Result<(u64, u64)> {
    let read = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        netns.enter(|| std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))
    };
    let text = [read("snmp")?, read("netstat")?].concat();
    let counter = |table: &str, name: &str| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(table)).map(str::split_whitespace);
        let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        let value = names.zip(values).find(|(other, _)| *other == name).map(|(_, value)| value.parse());
        value.with_context(|| format!("no counter {name}"))?.context("no number")
    };
    Ok((counter("Ip:", "OutRequests")?, counter("IpExt:", "OutOctets")?))
}

fn since(after: (u64, u64), before: (u64, u64)) -> (u64, u64) {
    (after.0 - before.0, after.1 - before.1)
}

/// The same 5-tuples again and again: TCP connections that end by a reset, datagrams whose flows end for idleness. Ends and
/// beginnings fall into windows as they will; the configuration changes all the time.
#[test]
fn ports_are_used_again_at_once_and_the_rules_change_meanwhile() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = Log::new(&directory.path().join("flow.log"), FORMAT);
    let rule = |port: u16| {
        format!(
            "{SMALL_TABLE}[timeouts]\ntcp_transitory = \"1s\"\nudp = \"1s\"\nudp_stream = \"1s\"\n{}\
             [[firewall.rule]]\nname = \"changes\"\naction = \"deny\"\nprotocol = \"tcp\"\ndestination_ports = \"{port}\"\n",
            log.config()
        )
    };
    let mut lab = Lab::with_config(Options::default(), &rule(20_000))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    let _udp = serve::udp_echo(&lab.net.server, &[9001])?;
    let (client, server) = (lab.net.client_v4(0), lab.net.server_v4());
    let before = (sent_by(lab.client())?, sent_by(&lab.net.server)?);
    for round in 0..12_u16 {
        lab.client().enter(|| {
            for port in 4000..4012 {
                reset_after_an_echo((client, port).into(), (server, 7).into())?;
                reset_after_an_echo((client, port).into(), (server, 7).into())?;
                datagram((client, port).into(), (server, 9001).into())?;
            }
            Ok(())
        })?;
        lab.appliance.write_config(&format!("{}{}", lab.net.config(), rule(20_001 + round)))?;
        lab.appliance.ask(&["reload"])?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let after = (sent_by(lab.client())?, sent_by(&lab.net.server)?);
    lab.appliance.stop()?;
    let records = log.read()?;
    nothing_lost(&records)?;
    for (source, other, sent) in
        [(client, server, since(after.0, before.0)), (server, client, since(after.1, before.1))]
    {
        ensure!(sent.0 > 1000, "{source} has sent {} packets only", sent.0);
        let logged = from(&lab, &records, source, |record| record["action"] == "ACCEPT");
        ensure!(logged == sent, "{source} has sent {sent:?}, and {logged:?} is logged as it came in");
        let left = onward(&lab, &records, other);
        ensure!(left == sent, "{source} has sent {sent:?}, and {left:?} is logged as it left");
    }
    Ok(())
}

/// A TCP connection that is used once and then reset, so that its ports are free at once.
fn reset_after_an_echo(own: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = once_free(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&own.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket)
    });
    let socket = socket.with_context(|| format!("{own} to {to}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    (&socket).write_all(b"again")?;
    (&socket).read_exact(&mut [0; 5]).context("no echo")?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(())
}

fn datagram(own: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = once_free(|| UdpSocket::bind(own)).with_context(|| format!("cannot bind {own}"))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&[0; 333])?;
    let length = socket.recv(&mut [0; 400]).context("no echo")?;
    ensure!(length == 333, "{length} bytes came back");
    Ok(())
}

/// A socket that was closed lives on for a moment in a process that another test starts just then.
fn once_free<T>(mut open: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable};
    for _ in 0..1000 {
        match open() {
            Err(error) if matches!(error.kind(), AddrInUse | AddrNotAvailable) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    open()
}

/// What finds no room is a REJECT record, what does is an ACCEPT record, and there is nothing else.
#[test]
fn a_full_table_is_counted_exactly() -> Result<()> {
    const SENT: u64 = 2400;
    let directory = tempfile::tempdir()?;
    let log = Log::new(&directory.path().join("flow.log"), FORMAT);
    let mut lab = Lab::with_config(Options::default(), &format!("[flows]\nmax = \"1k\"\n{}", log.config()))?;
    let server = serve::udp_echo(&lab.net.server, &[9001])?;
    // Both neighbours are known before anything is counted.
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    let to = SocketAddr::new(lab.net.server_v4().into(), 9001);
    lab.client().enter(|| {
        for port in (2000..).take(SENT as usize) {
            // An answer or a refusal is for nobody: the socket is gone by then.
            UdpSocket::bind(("0.0.0.0", port))?.send_to(&[0; 100], to)?;
        }
        Ok(())
    })?;
    let refused = || anyhow::Ok(lab.appliance.status()?.drops()?.get("table_full").copied().unwrap_or(0));
    wait_until("each to arrive or to be refused", PATIENCE, || Ok(server.requests() + refused()? >= SENT))?;
    let (refused, served) = (refused()?, server.requests());
    lab.appliance.stop()?;
    let records = log.read()?;
    nothing_lost(&records)?;
    let client = lab.net.client_v4(0);
    let udp = |action: &'static str, reason: &'static str| {
        from(&lab, &records, client, move |record| {
            record["protocol"] == "17" && record["action"] == action && record["drop-reason"] == reason
        })
    };
    ensure!(refused > 0, "{SENT} flows fit a table for 1,024");
    ensure!(
        udp("REJECT", "table_full") == (refused, 128 * refused),
        "{refused} refused: {:?}",
        udp("REJECT", "table_full")
    );
    ensure!(udp("ACCEPT", "-") == (served, 128 * served), "{served} served: {:?}", udp("ACCEPT", "-"));
    ensure!(refused + served == SENT, "{SENT} sent, {served} served, {refused} refused");
    Ok(())
}

/// One flow from two CPUs at a time, through two queues: no packet of it is lost to the counters.
#[test]
fn two_cpus_count_one_flow() -> Result<()> {
    const EACH: u64 = 60_000;
    let directory = tempfile::tempdir()?;
    let log = Log::new(&directory.path().join("flow.log"), FORMAT);
    let options = Options { queues: 2, ..Options::default() };
    let mut lab = Lab::with_config(options, &format!("{SMALL_TABLE}{}", log.config()))?;
    let _server = serve::udp_sink(&lab.net.server, 9001)?;
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    // Each CPU its own queue.
    let interface = "/sys/class/net/eth0/queues";
    for (queue, mask) in [(0, 1), (1, 2)] {
        let write = format!("echo {mask} > {interface}/tx-{queue}/xps_cpus");
        run(std::process::Command::new("ip").args(["netns", "exec", lab.client().name(), "sh", "-c", &write]))?;
    }
    let to = SocketAddrV4::new(lab.net.server_v4(), 9001);
    let before = sent_by(lab.client())?;
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|cpu| {
                scope.spawn({
                    let lab = &lab;
                    move || send_from(lab, cpu, to, EACH)
                })
            })
            .collect();
        senders
            .into_iter()
            .try_for_each(|sender| sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let sent = since(sent_by(lab.client())?, before);
    ensure!(sent == (2 * EACH, 2 * EACH * 128), "the client has sent {sent:?}");
    let queues = run(lab.net.appliance.command("ethtool").args(["-S", &lab.net.inside(0)]))?;
    lab.appliance.stop()?;
    let records = log.read()?;
    nothing_lost(&records)?;
    let is_it = |record: &Record| record["srcport"] == "5000" && record["dstport"] == "9001";
    let logged = from(&lab, &records, lab.net.client_v4(0), is_it);
    for queue in 0..2 {
        let name = format!("rx_queue_{queue}_xdp_packets:");
        let count = queues.lines().find_map(|line| line.trim().strip_prefix(&name)?.trim().parse::<u64>().ok());
        ensure!(count.is_some_and(|count| count > EACH / 2), "queue {queue} had {count:?} packets: {queues}");
    }
    let came = 2 * EACH - no_room(&lab)?;
    ensure!(logged == (came, came * 128), "{came} have come, {logged:?} is logged");
    Ok(())
}

/// Packets of the client that the wire had no room for.
fn no_room(lab: &Lab) -> Result<u64> {
    let said: Value = serde_json::from_str(&lab.client().ip("-j -s link show dev eth0")?)?;
    said.pointer("/0/stats64/tx/dropped").and_then(Value::as_u64).with_context(|| format!("no count in {said}"))
}

/// From one port, on one CPU.
fn send_from(lab: &Lab, cpu: usize, to: SocketAddrV4, count: u64) -> Result<()> {
    lab.client().enter(|| {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose a CPU")?;
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddrV4::new(lab.net.client_v4(0), 5000).into())?;
        socket.connect(&to.into())?;
        for _ in 0..count {
            socket.send(&[0; 100])?;
        }
        Ok(())
    })
}

/// Sums by interface, ports and protocol.
const READER: &str = r#"
import json, sys
from flowlogs_reader import FlowRecord
sums = {}
for line in open(sys.argv[1]):
    record = FlowRecord.from_cwl_event(dict(message=line.rstrip("\n")))
    key = "%s %s %s %s" % (record.interface_id, record.dstport, record.srcport if record.dstport != 5201 or 5301 <= record.srcport <= 5320 else "any", record.protocol)
    packets, octets = sums.get(key, (0, 0))
    sums[key] = (packets + (record.packets or 0), octets + (record.bytes or 0))
print(json.dumps(sums))
"#;

/// iperf3 says how many datagrams it sent and how many came, flowlogs-reader what the records say of it.
#[test]
fn iperf3_and_flowlogs_reader_agree() -> Result<()> {
    const DATAGRAMS: u64 = 8000;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("flow.log");
    let log = Log::new(&path, "default");
    let config = |seconds: u64| format!("{SMALL_TABLE}[timeouts]\nicmp = \"{seconds}s\"\n{}", log.config());
    let mut lab = Lab::with_config(Options::default(), &config(60))?;
    let _server = lab.net.server.spawn("iperf3", "-s")?;
    wait_until("iperf3 -s to listen", PATIENCE, || {
        Ok(lab.net.server.run("ss", "-Hlnt sport = 5201")?.contains("5201"))
    })?;
    let how = format!("-c {} -J -u -b 16M -l 1000 -k {DATAGRAMS} --connect-timeout 20000", lab.net.server_v4());
    let overrun = || snmp(&lab.net.server, Family::V4, "RcvbufErrors");
    let before = overrun()?;
    let mut client = lab.client().spawn("iperf3", &how)?;
    let mut reloads = 0;
    while client.is_running() {
        reloads += 1;
        lab.appliance.write_config(&format!("{}{}", lab.net.config(), config(60 + reloads)))?;
        lab.appliance.ask(&["reload"])?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let report: Value = serde_json::from_str(&client.finish()?)?;
    let of =
        |path: &str| report.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {report}"));
    let sent = of("/end/sum_sent/packets").or_else(|_| of("/end/sum/packets"))?;
    ensure!(sent == DATAGRAMS && reloads > 3, "iperf3 has sent {sent} datagrams during {reloads} reloads");
    let bytes = of("/end/sum_sent/bytes").or_else(|_| of("/end/sum/bytes"))?;
    let lost = of("/end/sum/lost_packets")?;
    let no_room = overrun()? - before;
    ensure!(
        bytes == DATAGRAMS * 1000 && lost <= no_room,
        "iperf3 has sent {bytes} bytes, {lost} datagrams did not come, and its socket had no room for {no_room}"
    );
    lab.appliance.stop()?;
    let sums = read_by_others(&path)?;
    // A datagram of four bytes each way before the data.
    let expected = serde_json::json!([sent + 1, bytes + sent * 28 + 32]);
    for interface in [lab.net.inside(0), lab.net.outside().to_owned()] {
        let found = &sums[format!("{interface} 5201 any 17")];
        ensure!(*found == expected, "{interface}: {found} instead of {expected}: {sums}");
    }
    Ok(())
}

/// iperf3 says how many bytes of a TCP stream it sent, flowlogs-reader how many packets and bytes there were. Every packet of the
/// sender has 20 bytes of IPv4 and 32 of TCP (RFC 9293 §3.1, timestamps of RFC 7323 §3.2), its SYN 8 more of options; the rest is
/// iperf3's: its stream, and before it a cookie of 37 bytes. What was sent again comes on top, segment by segment.
#[test]
fn iperf3_and_flowlogs_reader_agree_about_tcp() -> Result<()> {
    const HEADERS: u64 = 20 + 32;
    const SYN_OPTIONS: u64 = 8;
    const COOKIE: u64 = 37;
    const SEGMENT: u64 = 1500 - HEADERS;
    const BLOCK: u64 = 8 << 10;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("flow.log");
    let log = Log::new(&path, "default");
    let mut lab = Lab::with_config(Options::default(), &format!("{SMALL_TABLE}{}", log.config()))?;
    let _server = lab.net.server.spawn("iperf3", "-s")?;
    wait_until("iperf3 -s to listen", PATIENCE, || {
        Ok(lab.net.server.run("ss", "-Hlnt sport = 5201")?.contains("5201"))
    })?;
    // So slowly that nothing waits in the socket when it ends.
    let run = |port: u16| -> Result<[u64; 3]> {
        let server = lab.net.server_v4();
        let how = format!("-c {server} -J -b 40M -l 8K -n 10M --cport {port} --connect-timeout 20000");
        let report: Value = serde_json::from_str(&lab.client().run("iperf3", &how)?)?;
        let of =
            |path: &str| report.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {report}"));
        let (sent, again) = (of("/end/sum_sent/bytes")?, of("/end/sum_sent/retransmits")?);
        Ok([sent, again, of("/end/sum_received/bytes")?])
    };
    let mut ports = 5301..5321;
    let (port, sent, again) = loop {
        let port = ports.next().context("never has all that was sent come")?;
        let [sent, again, read] = run(port)?;
        ensure!(sent >= 10 << 20 && read <= sent, "{sent} bytes sent and {read} read");
        // The server stops counting when it hears by the other connection that the client is done: its last blocks may be unread
        // then. If they are many, it had no CPU, and the client may not have sent all that it says.
        if read + 4 * BLOCK >= sent {
            break (port, sent, again);
        }
    };
    lab.appliance.stop()?;
    let sums = read_by_others(&path)?;
    for interface in [lab.net.inside(0), lab.net.outside().to_owned()] {
        let found = &sums[format!("{interface} 5201 {port} 6")];
        let number = |at: usize| found[at].as_u64().with_context(|| format!("{interface}: {sums}"));
        let (packets, bytes) = (number(0)?, number(1)?);
        let payload = bytes - packets * HEADERS - SYN_OPTIONS;
        let expected = sent + COOKIE..=sent + COOKIE + again * SEGMENT;
        ensure!(
            expected.contains(&payload),
            "{interface}: {payload} instead of {expected:?}, {again} sent again: {sums}"
        );
    }
    Ok(())
}

fn read_by_others(log: &Path) -> Result<Value> {
    let python = xtask::toolchain::python_directory()?.join("bin/python");
    ensure!(python.exists(), "{} is missing: run `cargo xtask setup`", python.display());
    let said = run(std::process::Command::new(python).args(["-W", "ignore", "-c", READER]).arg(log))?;
    serde_json::from_str(&said).with_context(|| format!("flowlogs-reader: {said}"))
}
