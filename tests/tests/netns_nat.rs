//! What translation does on the wire, seen from the server: addresses, ports, TTL, checksums, and errors back to the
//! client. Frames are injected as no socket would send them.

use anyhow::{Context, Result, ensure};
use forwarder_kit::packet::{Packet, Summary, describe, flag, fragment, protocol, verify_checksums};
use forwarder_kit::run::{PATIENCE, output, wait_until};
use forwarder_kit::serve;
use forwarder_kit::sniff::{Sniffer, mac};
use forwarder_kit::topology::{Options, Shape};
use forwarder_tests::{Family, Lab, in_both_shapes};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

in_both_shapes! {
    unusual_packets_arrive_translated
    fragments_in_order_arrive_translated
    a_closed_port_is_told_to_the_client
    one_inside_host_keeps_one_address_of_the_pool
    mapping_and_filtering_depend_on_address_and_port
}

/// Client and server as raw frames see them.
struct Wire {
    client: Sniffer,
    server: Sniffer,
    macs: ([u8; 6], [u8; 6]),
}

impl Wire {
    fn open(lab: &Lab) -> Result<Self> {
        for family in Family::BOTH {
            lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
        }
        let gateway = match lab.net.options.shape {
            Shape::TwoArmed => mac(&lab.net.appliance, "inside")?,
            Shape::OneArmed => mac(&lab.net.world, "c0")?,
        };
        Ok(Self {
            client: Sniffer::open(lab.client(), "eth0")?,
            server: Sniffer::open(&lab.net.server, "eth0")?,
            macs: (mac(lab.client(), "eth0")?, gateway),
        })
    }

    /// Sends from the client; what arrives at the server with this protocol and payload.
    fn pass(&self, packet: Packet) -> Result<Vec<u8>> {
        let sent = packet.macs(self.macs.0, self.macs.1).build();
        let (wanted, payload) = (Summary::of(&sent).context("IP is sent")?, payload_of(&sent));
        self.client.inject(&sent)?;
        self.server.expect(&describe(&sent), PATIENCE, |frame| {
            Summary::of(frame).is_some_and(|summary| summary.protocol == wanted.protocol)
                && payload_of(frame) == payload
        })
    }
}

fn payload_of(frame: &[u8]) -> Vec<u8> {
    Summary::of(frame).map(|summary| summary.payload(frame).to_vec()).unwrap_or_default()
}

fn unusual_packets_arrive_translated(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let wire = Wire::open(&lab)?;
    let v4 = || Packet::between("10.0.1.10", "203.0.113.10");
    let v6 = || Packet::between("2001:db8:1::10", "2001:db8:3::10");
    let cases = [
        ("ESP passes by address", v4().protocol(protocol::ESP).payload(b"esp esp esp")),
        ("GRE passes by address", v4().protocol(protocol::GRE).payload(b"gre gre gre")),
        ("SCTP passes by address", v4().protocol(protocol::SCTP).payload(b"sctp sctp sctp")),
        ("UDP without checksum stays so", v4().udp(5001, 9).without_checksum().payload(b"no checksum")),
        ("IPv4 options", v4().options(&[1, 1, 1, 0]).udp(5002, 9).payload(b"options")),
        ("trailing padding", v4().udp(5003, 9).payload(b"padded").trailing(12)),
        ("odd length", v4().udp(5004, 9).payload(b"odd")),
        ("TCP options", v4().tcp(5005, 9, flag::SYN, 1).tcp_options(&[2, 4, 5, 180]).payload(b"fast open")),
        ("traffic class", v4().traffic_class(0xb8).udp(5006, 9).payload(b"voice")),
        ("IPv6 ESP", v6().protocol(protocol::ESP).payload(b"esp over six")),
        ("IPv6 UDP", v6().udp(5001, 9).payload(b"udp over six")),
        ("IPv6 destination options", v6().extension(60, &[]).udp(5002, 9).payload(b"behind options")),
    ];
    let hops = if shape == Shape::TwoArmed { 2 } else { 3 };
    for (sentence, packet) in cases {
        let zero = sentence.contains("without checksum");
        let got = wire.pass(packet.clone()).context(sentence)?;
        let line = describe(&got);
        verify_checksums(&got).map_err(anyhow::Error::msg).with_context(|| format!("{sentence}: {line}"))?;
        let (sent, arrived) = (packet.build(), Summary::of(&got).context("IP has arrived")?);
        let sent = Summary::of(&sent).context("IP was sent")?;
        let family = if arrived.source.is_ipv4() { Family::V4 } else { Family::V6 };
        ensure!(arrived.source == lab.seen(family), "{sentence}: {line}");
        ensure!(arrived.destination == sent.destination && arrived.ports == sent.ports, "{sentence}: {line}");
        ensure!(arrived.ttl == 64 - hops, "{sentence}: {line}");
        ensure!(!zero || arrived.segment(&got)[6..8] == [0, 0], "{sentence}: a checksum has appeared");
    }
    Ok(())
}

fn fragments_in_order_arrive_translated(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let wire = Wire::open(&lab)?;
    for (family, base) in [
        (Family::V4, Packet::between("10.0.1.10", "203.0.113.10").id(4711)),
        (Family::V6, Packet::between("2001:db8:1::10", "2001:db8:3::10")),
    ] {
        let whole = base.macs(wire.macs.0, wire.macs.1).udp(6000, 9).payload_of(3000).build();
        let wanted = Summary::of(&whole).context("IP is sent")?.segment(&whole).to_vec();
        for frame in fragment(&whole, 1280, 4711) {
            wire.client.inject(&frame)?;
        }
        let mut segment = Vec::new();
        while segment.len() < wanted.len() {
            let frame = wire.server.expect("a fragment", PATIENCE, |frame| {
                Summary::of(frame).is_some_and(|summary| summary.fragment.is_some())
            })?;
            verify_checksums(&frame).map_err(anyhow::Error::msg).with_context(|| describe(&frame))?;
            let summary = Summary::of(&frame).context("IP has arrived")?;
            ensure!(summary.source == lab.seen(family), "not translated: {}", describe(&frame));
            segment.extend_from_slice(summary.segment(&frame));
        }
        // The UDP header's checksum (bytes 6 and 7) is another one after translation; judge it over the whole.
        ensure!(segment[8..] == wanted[8..], "the payload has changed");
        let (IpAddr::V4(_), IpAddr::V4(_)) = (lab.seen(family), lab.server(family)) else { continue };
        let [source, destination] = [lab.seen(family), lab.server(family)].map(|address| address.to_string());
        let whole = Packet::between(&source, &destination).udp(6000, 9).payload_of(3000).build();
        let expected = Summary::of(&whole).context("IP was built")?.segment(&whole).to_vec();
        ensure!(segment[..8] == expected[..8], "UDP header {:x?} instead of {:x?}", &segment[..8], &expected[..8]);
    }
    Ok(())
}

/// A later fragment whose first one never came is dropped under its own name, never sent on.
#[test]
fn a_fragment_without_its_first_is_dropped_by_name() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let wire = Wire::open(&lab)?;
    let packet = Packet::between("10.0.1.10", "203.0.113.10").fragment(99, 1480, false);
    let packet = packet.protocol(protocol::UDP).payload(b"orphan").macs(wire.macs.0, wire.macs.1);
    wire.client.inject(&packet.build())?;
    wait_until("the drop to be counted", PATIENCE, || {
        Ok(lab.appliance.status()?.drops()?.get("fragment_undecided") == Some(&1))
    })?;
    let arrived = wire.server.all(Duration::from_millis(100))?;
    ensure!(!arrived.iter().any(|frame| payload_of(frame) == b"orphan"), "it has been sent on");
    Ok(())
}

fn a_closed_port_is_told_to_the_client(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    for family in Family::BOTH {
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
        let to = SocketAddr::new(lab.server(family), 4);
        lab.client().enter(|| {
            let any: IpAddr = if family == Family::V4 { [0u8; 4].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"anybody there?")?;
            let error = socket.recv(&mut [0; 8]).expect_err("nobody listens there");
            ensure!(
                error.kind() == std::io::ErrorKind::ConnectionRefused,
                "{family:?}: {error} instead of port unreachable"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn one_inside_host_keeps_one_address_of_the_pool(shape: Shape) -> Result<()> {
    let options = Options { shape, clients: 3, public_addresses: 3, ..Options::default() };
    let pool = "[[nat.source]]\nfrom = [\"10.0.0.0/8\"]\n\
                addresses = [\"198.51.100.10\", \"198.51.100.11\", \"198.51.100.12\"]\n";
    let lab = Lab::with_config(options, pool)?;
    let mut used = std::collections::BTreeSet::new();
    for (at, client) in lab.net.clients.iter().enumerate() {
        let server = serve::http(&lab.net.server, 8080)?;
        for _ in 0..8 {
            let url = format!("http://{}/10", lab.authority(Family::V4, 8080));
            client.run("curl", &format!("-sS -m 30 -o /dev/null {url}"))?;
        }
        let seen = server.addresses();
        ensure!(seen.len() == 1, "client {at} left with {seen:?}");
        used.extend(seen);
    }
    let pool: Vec<IpAddr> = (0..3).map(|n| lab.net.public_v4(n).into()).collect();
    ensure!(used.iter().all(|address| pool.contains(address)), "{used:?} is not the pool");
    Ok(())
}

/// RFC 5780 as a stranger measures it. A port that is free is kept, which alone would look endpoint-independent; so a
/// second client holds the port towards one of the server's addresses, and the mapping has to differ just there.
fn mapping_and_filtering_depend_on_address_and_port(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, clients: 2, ..Options::default() })?;
    lab.net.server.ip("address add 203.0.113.11/24 dev eth0")?;
    let scratch = lab.appliance.scratch().display().to_string();
    let serve = format!(
        "-n -L 203.0.113.10 -L 203.0.113.11 -S --no-tls --no-dtls --no-cli --log-file stdout \
         --pidfile {scratch}/pid -b {scratch}/db"
    );
    let _server = lab.net.server.spawn("turnserver", &serve)?;
    wait_until("turnserver to listen", PATIENCE, || {
        Ok(lab.net.server.run("ss", "-Hlnu sport = 3479")?.contains("203.0.113.11"))
    })?;
    for client in &lab.net.clients {
        client.run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.11")?;
    }
    let _held = lab.net.clients[1].enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:5000")?;
        socket.send_to(b"mine", "203.0.113.11:3478")?;
        Ok(socket)
    })?;
    let ask = |what: &str, port: &str| {
        let words = [what, "-L", "10.0.1.10", "-l", port, "203.0.113.10"];
        let said = output(lab.client().command("turnutils_natdiscovery").args(words))?;
        anyhow::Ok(String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
    };
    let said = ask("-m", "5000")?;
    ensure!(said.contains("NAT with Address and Port Dependent Mapping"), "mapping: {said}");
    // From another port: the first question has opened flows to all of the server's addresses.
    let said = ask("-f", "5001")?;
    ensure!(said.contains("NAT with Address and Port Dependent Filtering"), "filtering: {said}");
    Ok(())
}

/// Nothing new gets in from outside; over IPv6, where addresses are open, that is the firewall's word.
#[test]
fn the_outside_opens_nothing() -> Result<()> {
    let lab = Lab::of(Shape::TwoArmed)?;
    let own = serve::http(lab.client(), 80)?;
    let url = format!("http://[{}]/10", lab.net.client_v6(0));
    ensure!(lab.net.server.run("curl", &format!("-sS -m 2 {url}")).is_err(), "the server got in");
    ensure!(own.requests() == 0, "the client was reached");
    let drops = lab.appliance.status()?.drops()?;
    ensure!(drops.get("policy").is_some_and(|count| *count > 0), "no policy drop in {drops:?}");
    Ok(())
}
