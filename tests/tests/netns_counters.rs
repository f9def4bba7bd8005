//! Counters against what both ends saw: exact, in packets and in bytes, for flows and for interfaces.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::{Options, Shape};
use forwarder_tests::{Family, Lab, in_both_shapes};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const QUESTIONS: u64 = 500;
const SIZE: usize = 100;

in_both_shapes! {
    flows_and_interfaces_count_what_the_ends_saw
    status_and_flows_say_what_runs
}

fn flows_and_interfaces_count_what_the_ends_saw(shape: Shape) -> Result<()> {
    let lab = Lab::of(shape)?;
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    for family in Family::BOTH {
        lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
    }
    let (inside, outside) = (lab.net.inside(0), lab.net.outside());
    for (done, family) in Family::BOTH.into_iter().enumerate() {
        let before = lab.appliance.status()?;
        let source = ask_and_answer(&lab, family)?;
        let served = server.requests() - done as u64 * QUESTIONS;
        ensure!(served == QUESTIONS, "the server saw {served} datagrams");
        let after = lab.appliance.status()?;
        let packet = (SIZE + 8 + if family == Family::V4 { 20 } else { 40 }) as u64;
        let flows = lab.appliance.flows()?;
        let flow = flows.iter().find(|flow| flow.protocol == 17 && flow.source == source);
        let flow = flow.with_context(|| format!("{family:?}: no flow from {source} in {flows:?}"))?;
        ensure!(flow.destination == SocketAddr::new(lab.server(family), 9000), "{family:?}: {flow:?}");
        ensure!(flow.translated_source == SocketAddr::new(lab.seen(family), source.port()), "{family:?}: {flow:?}");
        ensure!(flow.sent == (QUESTIONS, QUESTIONS * packet), "{family:?}: sent {:?}", flow.sent);
        ensure!(flow.received == (QUESTIONS, QUESTIONS * packet), "{family:?}: received {:?}", flow.received);
        for name in [inside.as_str(), outside] {
            let (before, after) = (before.interface(name)?, after.interface(name)?);
            let both_ways = if shape == Shape::OneArmed { 2 * QUESTIONS } else { QUESTIONS };
            let sent = after.packets_out - before.packets_out;
            ensure!(sent == both_ways, "{family:?}: {name} sent {sent} packets instead of {both_ways}");
            // ARP and neighbour discovery may come in between; they are not forwarded.
            let came = after.packets_in - before.packets_in;
            ensure!((both_ways..both_ways + 20).contains(&came), "{family:?}: {came} packets came in by {name}");
        }
        ensure!(after.drops()? == before.drops()?, "{family:?}: drops {:?}", after.drops()?);
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
        }
        socket.local_addr().context("cannot read the own address")
    })
}

fn status_and_flows_say_what_runs(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, ..Options::default() })?;
    let status = lab.appliance.status()?;
    ensure!(status.has_interface(lab.net.outside()), "{}", status.json);
    ensure!(status.mode(lab.net.outside())? == "native", "veth has native XDP: {}", status.json);
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    let text = lab.appliance.ask(&["status"])?;
    ensure!(text.contains(lab.net.outside()), "the text names no interface: {text}");
    let text = lab.appliance.ask(&["flows", "list"])?;
    ensure!(text.contains("10.0.1.10") && text.contains("198.51.100.10"), "the ping does not show: {text}");
    let count = lab.appliance.ask(&["flows", "count"])?;
    ensure!(count.contains('1'), "one flow is expected: {count}");
    lab.appliance.ask(&["flows", "flush"])?;
    wait_until("the table to be empty", PATIENCE, || Ok(lab.appliance.flows()?.is_empty()))?;
    let refused = lab.appliance.try_ask(&["flows", "nonsense"])?;
    ensure!(refused.status.code() == Some(2), "a usage error ends with 2, not {}", refused.status);
    Ok(())
}
