//! Rules with `log = true`: a line for each flow and each refusal, none for what is established, and no flood of lines.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const RULES: &str = r#"
[firewall]
logs_per_second_per_cpu = 50

[[firewall.rule]]
name = "no telnet"
action = "reject"
protocol = "tcp"
destination_ports = "23"
log = true

[[firewall.rule]]
name = "echo"
action = "allow"
protocol = "tcp"
destination_ports = "7"
log = true

[[firewall.rule]]
name = "unsaid"
action = "deny"
protocol = "udp"
destination_ports = "9003"

[[firewall.rule]]
name = "no chatter"
action = "deny"
protocol = "udp"
destination_ports = "9004"
log = true

[[firewall.host]]
name = "no ssh"
action = "deny"
protocol = "tcp"
destination_ports = "22"
log = true
"#;

/// The lines of one rule.
fn lines(lab: &Lab, rule: &str) -> Vec<String> {
    let named = format!("rule=\"{rule}\"");
    lab.appliance.log().lines().filter(|line| line.contains(&named)).map(str::to_owned).collect()
}

/// Waits until a rule has so many lines, and none more; returns the last.
fn last_of(lab: &Lab, rule: &str, count: usize) -> Result<String> {
    wait_until(&format!("line {count} of `{rule}`"), PATIENCE, || Ok(lines(lab, rule).len() >= count))?;
    let lines = lines(lab, rule);
    ensure!(lines.len() == count, "{count} lines of `{rule}` were expected:\n{}", lines.join("\n"));
    lines.into_iter().next_back().context("a line")
}

fn has(line: &str, parts: &[&str]) -> Result<()> {
    ensure!(parts.iter().all(|part| line.contains(part)), "not all of {parts:?} are in\n{line}");
    Ok(())
}

fn connect(lab: &Lab, to: SocketAddr) -> Result<bool> {
    lab.client().enter(|| Ok(TcpStream::connect_timeout(&to, Duration::from_millis(400)).is_ok()))
}

#[test]
fn each_flow_and_each_refusal_is_a_line_and_established_traffic_is_none() -> Result<()> {
    let lab = Lab::with_config(Options::default(), &format!("{RULES}{SMALL_TABLE}"))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7, 23], 4)?;
    let own: [IpAddr; 2] = ["10.0.1.1".parse()?, "2001:db8:1::1".parse()?];
    for (nth, (family, own)) in (1..).zip(Family::BOTH.into_iter().zip(own)) {
        let server = |port| SocketAddr::new(lab.server(family), port);
        let mut echo = EchoConnection::open(lab.client(), server(7))?;
        (0..50).try_for_each(|_| echo.ping())?;
        ensure!(!connect(&lab, server(23))?, "it is rejected");
        ensure!(!connect(&lab, SocketAddr::new(own, 22))?, "it is denied");
        let (from, to) = (format!("source=\"{}\"", echo.local()?), format!("destination=\"{}\"", server(7)));
        has(
            &last_of(&lab, "echo", nth)?,
            &["action=\"allow\"", "protocol=\"tcp\"", &from, &to, "in=\"inside\"", "out=\"outside\""],
        )?;
        has(&last_of(&lab, "no telnet", nth)?, &["action=\"reject\"", &server(23).to_string()])?;
        has(&last_of(&lab, "no ssh", nth)?, &["action=\"deny\"", "out=\"host\""])?;
        ensure!(echo.ping().is_ok());
    }
    ensure!(lines(&lab, "echo").len() == 2 && !lab.appliance.log().contains("suppressed"), "{}", lab.appliance.log());
    Ok(())
}

/// Of many, some are told, and how many were not.
#[test]
fn a_flood_is_told_by_its_number() -> Result<()> {
    const DATAGRAMS: u64 = 3000;
    let lab = Lab::with_config(Options::default(), &format!("{RULES}{SMALL_TABLE}"))?;
    lab.client().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..DATAGRAMS {
            socket.send_to(b"flood", "203.0.113.10:9004")?;
            socket.send_to(b"flood", "203.0.113.10:9003")?;
        }
        Ok(())
    })?;
    let told = |lab: &Lab| -> (u64, u64) {
        let log = lab.appliance.log();
        let suppressed = log.lines().filter_map(|line| line.split_once("suppressed=")?.1.trim().parse::<u64>().ok());
        (lines(lab, "no chatter").len() as u64, suppressed.sum())
    };
    wait_until("what was suppressed", PATIENCE, || {
        let (told, suppressed) = told(&lab);
        Ok(told + suppressed >= DATAGRAMS)
    })
    .with_context(|| format!("{:?}", told(&lab)))?;
    let (told, suppressed) = told(&lab);
    ensure!(told + suppressed == DATAGRAMS, "{told} lines and {suppressed} suppressed of {DATAGRAMS}");
    ensure!((1..1500).contains(&told), "{told} lines");
    ensure!(lines(&lab, "unsaid").is_empty(), "it does not ask for it");
    Ok(())
}

/// A live flow that a new policy ends is told once.
#[test]
fn a_flow_that_ends_by_a_reload_is_a_line() -> Result<()> {
    let lab = Lab::with_config(Options::default(), &format!("{RULES}{SMALL_TABLE}"))?;
    let _udp = serve::udp_echo(&lab.net.server, &[9001])?;
    let socket = lab.client().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.connect("203.0.113.10:9001")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let ask = || -> Result<()> {
        socket.send(b"there?")?;
        socket.recv(&mut [0; 16])?;
        Ok(())
    };
    (0..3).try_for_each(|_| ask())?;
    let rules = "[[firewall.rule]]\nname = \"no more\"\naction = \"deny\"\nprotocol = \"udp\"\nlog = true\n";
    lab.appliance.write_config(&format!("{}{rules}{SMALL_TABLE}", lab.net.config()))?;
    lab.appliance.ask(&["reload"])?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    ensure!(ask().is_err(), "it is no longer allowed");
    let line = last_of(&lab, "no more", 1)?;
    has(&line, &["action=\"deny\"", "203.0.113.10:9001", "in=\"inside\""])
}
