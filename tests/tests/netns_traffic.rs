//! Real programs through the real binary: what a user types after installing a NAT instance.
//!
//! Every case runs two-armed and one-armed, over IPv4 (translated) and IPv6 (not translated). The server tells whom it
//! saw: nothing but the public address over IPv4.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::status::Flow;
use forwarder_kit::topology::{Options, Shape};
use forwarder_tests::{Family, Lab, in_both_shapes, snmp};
use serde_json::Value;
use std::collections::BTreeSet;

in_both_shapes! {
    curl_gets_and_puts_what_was_sent
    ping_gets_every_answer
    traceroute_shows_the_appliance
    iperf3_tcp_both_directions
    iperf3_udp_loses_only_what_the_receiver_could_not_take
    dns_over_udp_and_tcp
    several_clients_share_one_address
}

fn curl_gets_and_puts_what_was_sent(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let server = serve::http(&lab.net.server, 8080)?;
    let file = lab.appliance.scratch().join("upload");
    std::fs::write(&file, vec![b'u'; 3_000_000])?;
    for family in Family::BOTH {
        let url = format!("http://{}", lab.authority(family, 8080));
        let fetch = format!("-sS -m 60 -o /dev/null -w %{{size_download}} {url}/5000000");
        let fetched = lab.client().run("curl", &fetch)?;
        ensure!(fetched == "5000000", "{family:?}: got {fetched} bytes");
        let put = format!("-sS -m 60 -o /dev/null -w %{{size_upload}} -T {} {url}/0", file.display());
        let sent = lab.client().run("curl", &put)?;
        ensure!(sent == "3000000", "{family:?}: sent {sent} bytes");
    }
    let expected = BTreeSet::from(Family::BOTH.map(|family| lab.seen(family)));
    ensure!(server.addresses() == expected, "the server saw {:?}", server.addresses());
    Ok(())
}

fn ping_gets_every_answer(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    for family in Family::BOTH {
        let server = lab.server(family);
        // The first packets may wait for neighbours; nothing may be lost after that.
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 {server}"))?;
        for size in [0, 56, 1400] {
            let said = lab.client().run("ping", &format!("-c 20 -i 0.01 -W 20 -q -s {size} {server}"))?;
            ensure!(said.contains(" 0% packet loss"), "{family:?}, {size} bytes: {said}");
        }
    }
    Ok(())
}

fn traceroute_shows_the_appliance(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let path = |family| match (shape, family) {
        (Shape::TwoArmed, Family::V4) => vec!["10.0.1.1", "198.51.100.1", "203.0.113.10"],
        (Shape::TwoArmed, Family::V6) => vec!["2001:db8:1::1", "2001:db8:1:ff::1", "2001:db8:3::10"],
        (Shape::OneArmed, Family::V4) => vec!["10.0.1.1", "198.51.100.10", "198.51.100.1", "203.0.113.10"],
        (Shape::OneArmed, Family::V6) => {
            vec!["2001:db8:1::1", "2001:db8:1:ff::10", "2001:db8:1:ff::1", "2001:db8:3::10"]
        }
    };
    for family in Family::BOTH {
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
        for method in ["-U", "-I", "-T -p 8080"] {
            let said = lab.client().run("traceroute", &format!("{method} -n -q 1 -w 10 {}", lab.server(family)))?;
            let hops: Vec<_> = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            ensure!(hops == path(family), "{family:?} {method}: {said}");
        }
    }
    Ok(())
}

fn iperf3_tcp_both_directions(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let _server = lab.net.server.spawn("iperf3", "-s")?;
    wait_for_iperf3(&lab)?;
    for family in Family::BOTH {
        for how in ["-n 30M", "-n 30M -R", "-t 1 -P 4", "-t 1 -P 4 -R"] {
            let report = iperf3(&lab, family, how)?;
            let flows = lab.appliance.flows()?;
            let streams = Stream::all(&report, &flows, family).with_context(|| format!("{family:?} {how}"))?;
            for stream in streams {
                stream.check().with_context(|| format!("{family:?} {how}: {stream:?}"))?;
            }
        }
    }
    ensure!(lab.appliance.status()?.drops()?.is_empty(), "{}", lab.appliance.status()?.json);
    Ok(())
}

/// One of iperf3's TCP connections, in the direction of its data: what both ends say, and what the appliance forwarded.
#[derive(Debug)]
struct Stream {
    /// Bytes of the word by which the client says whose test it is, before the data and not counted as such.
    cookie: u64,
    /// Bytes that the sending program has handed to its socket.
    sent: u64,
    /// Bytes that the receiving program has read until the sender was done. The rest is in sockets.
    received: u64,
    /// Segments that the sender has sent again.
    again: u64,
    /// Bytes of TCP payload that were forwarded.
    forwarded: u64,
}

impl Stream {
    /// Payload of a full segment over IPv4, with time stamps.
    const SEGMENT: u64 = 1500 - 20 - 32;
    /// Segments that may be sent again after the sender has been asked how many.
    const LATE: u64 = 32;

    fn all(report: &Value, flows: &[Flow], family: Family) -> Result<Vec<Self>> {
        let list = |path: &str| report.pointer(path).and_then(Value::as_array).with_context(|| format!("no {path}"));
        let reverse = report.pointer("/start/test_start/reverse").and_then(Value::as_u64).context("no direction")? == 1;
        let headers = 32 + if family == Family::V4 { 20 } else { 40 };
        let ends = list("/end/streams")?.iter().zip(list("/start/connected")?);
        let stream = |(end, connected): (&Value, &Value)| {
            let of = |value: &Value, path: &str| {
                value.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {value}"))
            };
            let port = of(connected, "/local_port")?;
            let is_it =
                |flow: &&Flow| u64::from(flow.source.port()) == port && flow.source.is_ipv4() == (family == Family::V4);
            let flow = flows.iter().find(is_it).with_context(|| format!("no flow from port {port}"))?;
            let (packets, bytes) = if reverse { flow.received } else { flow.sent };
            Ok(Self {
                cookie: if reverse { 0 } else { 37 },
                sent: of(end, "/sender/bytes")?,
                received: of(end, "/receiver/bytes")?,
                again: of(end, "/sender/retransmits")?,
                // A SYN has eight bytes more of options.
                forwarded: bytes - packets * headers - 8,
            })
        };
        ends.map(stream).collect()
    }

    fn check(&self) -> Result<()> {
        let Self { cookie, sent, received, again, forwarded } = *self;
        ensure!(received > 1_000_000, "only {received} bytes arrived");
        ensure!(forwarded >= received + cookie, "more has arrived than was forwarded");
        let most = sent + cookie + (again + Self::LATE) * Self::SEGMENT;
        ensure!(forwarded <= most, "more was forwarded than was sent");
        Ok(())
    }
}

fn iperf3_udp_loses_only_what_the_receiver_could_not_take(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let _server = lab.net.server.spawn("iperf3", "-s")?;
    wait_for_iperf3(&lab)?;
    for family in Family::BOTH {
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
        for how in ["-u -b 20M -l 1200 -t 1 -P 1", "-u -b 20M -l 1200 -t 1 -P 2 -R", "-u -b 10M -l 64 -t 1"] {
            let before = overruns(&lab)?;
            let report = iperf3(&lab, family, how)?;
            let lost = report.pointer("/end/sum/lost_packets").and_then(Value::as_i64).context("no lost_packets")?;
            let packets = report.pointer("/end/sum/packets").and_then(Value::as_i64).context("no packets")?;
            let overran = overruns(&lab)? - before;
            ensure!(
                packets > 500 && lost <= overran,
                "{family:?} {how}: lost {lost} of {packets}, {overran} at sockets"
            );
        }
    }
    Ok(())
}

fn dns_over_udp_and_tcp(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let _servers = serve::dns(&lab.net.server)?;
    for family in Family::BOTH {
        for over in ["+notcp", "+tcp"] {
            for name in ["example.com", "a.b.c.example.org"] {
                let ask = format!("@{} {name} A {over} +short +time=20 +tries=2", lab.server(family));
                let said = lab.client().run("dig", &ask)?;
                ensure!(said.trim() == "192.0.2.53", "{family:?} {over}: {said}");
            }
        }
    }
    Ok(())
}

fn several_clients_share_one_address(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, clients: 3, ..Options::default() })?;
    let server = serve::http(&lab.net.server, 8080)?;
    // The same source port from all of them: two have to get another one.
    for (at, client) in lab.net.clients.iter().enumerate() {
        let url = format!("http://{}/1000", lab.authority(Family::V4, 8080));
        client
            .run("curl", &format!("-sS -m 30 --local-port 40000 -o /dev/null {url}"))
            .with_context(|| format!("client {at}"))?;
    }
    let peers = server.peers();
    ensure!(server.addresses() == BTreeSet::from([lab.seen(Family::V4)]), "the server saw {peers:?}");
    ensure!(peers.len() == 3, "three connections, but {peers:?}");
    ensure!(peers.iter().any(|peer| peer.port() == 40_000), "a free port has to be kept: {peers:?}");
    Ok(())
}

fn iperf3(lab: &Lab, family: Family, how: &str) -> Result<Value> {
    let arguments = format!("-c {} -J --connect-timeout 20000 {how}", lab.server(family));
    let said = lab.client().run("iperf3", &arguments)?;
    serde_json::from_str(&said).with_context(|| format!("iperf3 {arguments} printed {said}"))
}

fn wait_for_iperf3(lab: &Lab) -> Result<()> {
    wait_until("iperf3 -s to listen", PATIENCE, || {
        let listening = lab.net.server.run("ss", "-Hlnt sport = 5201")?;
        Ok(listening.contains("5201"))
    })
}

/// Datagrams that a socket at either end had no room for, both families.
fn overruns(lab: &Lab) -> Result<i64> {
    let mut all = 0;
    for netns in [lab.client(), &lab.net.server] {
        all += snmp(netns, Family::V4, "RcvbufErrors")? + snmp(netns, Family::V6, "RcvbufErrors")?;
    }
    i64::try_from(all).context("an impossible counter")
}
