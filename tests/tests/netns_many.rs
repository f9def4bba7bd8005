//! 100,000 short connections through one public address, as fast as two cores let them.
//!
//! UDP: every pair of client port and server port is a flow of its own, and every answer has to come back to the socket
//! that asked. TCP: connect, one byte there and back, close.

use anyhow::{Context, Result, bail, ensure};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{Family, Lab};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: u64 = 100_000;
const PORTS: [u16; 8] = [9001, 9002, 9003, 9004, 9005, 9006, 9007, 9008];
const LARGE_TABLE: &str = "[flows]\nmax = \"256k\"\n";
const THREADS: u64 = 4;

#[test]
fn udp_100k_flows_share_one_address() -> Result<()> {
    let lab = Lab::with_config(Options::default(), LARGE_TABLE)?;
    let server = serve::udp_echo(&lab.net.server, &PORTS)?;
    let begun = Instant::now();
    let repeated = in_threads(&lab, |thread| {
        let sockets = CONNECTIONS / PORTS.len() as u64 / THREADS;
        (0..sockets).map(|at| ask_all_ports(lab.server(Family::V4), thread * sockets + at)).sum()
    })?;
    let (took, flows) = (begun.elapsed(), server.requests() - repeated);
    ensure!(flows >= CONNECTIONS, "only {flows} datagrams reached the server");
    ensure!(server.addresses() == BTreeSet::from([lab.seen(Family::V4)]), "the server saw {:?}", server.addresses());
    ensure!(repeated < CONNECTIONS / 100, "{repeated} datagrams had to be sent again");
    let status = lab.appliance.status()?;
    ensure!(status.flows()? >= CONNECTIONS, "the table has {} flows: {}", status.flows()?, status.json);
    println!("{CONNECTIONS} UDP flows in {:.1} s, {repeated} sent again", took.as_secs_f64());
    within_a_minute(took)
}

#[test]
fn tcp_100k_connections_share_one_address() -> Result<()> {
    let lab = Lab::with_config(Options::default(), LARGE_TABLE)?;
    let server = serve::tcp_echo(&lab.net.server, &PORTS, 2)?;
    lab.client().set_sysctls(&[("net.ipv4.ip_local_port_range", "1024 65535"), ("net.ipv4.tcp_tw_reuse", "1")])?;
    let begun = Instant::now();
    in_threads(&lab, |thread| {
        for at in 0..CONNECTIONS / THREADS {
            let port = PORTS[((thread + at) % PORTS.len() as u64) as usize];
            let to = SocketAddr::new(lab.server(Family::V4), port);
            short_connection(to).with_context(|| format!("connection {at} of thread {thread}"))?;
        }
        Ok(0)
    })?;
    let took = begun.elapsed();
    ensure!(server.requests() == CONNECTIONS, "the server saw {} connections", server.requests());
    ensure!(server.addresses() == BTreeSet::from([lab.seen(Family::V4)]), "the server saw {:?}", server.addresses());
    println!("{CONNECTIONS} TCP connections in {:.1} s", took.as_secs_f64());
    within_a_minute(took)
}

fn within_a_minute(took: Duration) -> Result<()> {
    ensure!(took < Duration::from_secs(60), "{CONNECTIONS} connections took {:.0} s", took.as_secs_f64());
    Ok(())
}

/// Runs `work` in several threads in the client's namespace and adds up what they return.
fn in_threads(lab: &Lab, work: impl Fn(u64) -> Result<u64> + Sync) -> Result<u64> {
    let sum = AtomicU64::new(0);
    let run = |thread| {
        sum.fetch_add(work(thread)?, Ordering::Relaxed);
        anyhow::Ok(())
    };
    lab.client().enter(|| {
        std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })?;
    Ok(sum.into_inner())
}

/// One socket asks all ports of the server and wants each one's answer. Returns how often it had to ask again.
fn ask_all_ports(server: IpAddr, number: u64) -> Result<u64> {
    let port = u16::try_from(2000 + number).context("more sockets than ports")?;
    let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("UDP port {port} is taken"))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut missing: BTreeSet<u16> = PORTS.into();
    let (mut repeated, question) = (0, number.to_be_bytes());
    for round in 0..5 {
        for port in &missing {
            socket.send_to(&question, (server, *port)).with_context(|| format!("cannot send to port {port}"))?;
        }
        repeated += if round > 0 { missing.len() as u64 } else { 0 };
        while !missing.is_empty() {
            let mut answer = [0; 16];
            match socket.recv_from(&mut answer) {
                Ok((length, from)) => {
                    ensure!(
                        answer[..length] == question && from.ip() == server,
                        "socket {number} got another's answer"
                    );
                    missing.remove(&from.port());
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        if missing.is_empty() {
            return Ok(repeated);
        }
    }
    bail!("no answer from ports {missing:?} to socket {number}, {:?}", socket.local_addr())
}

fn short_connection(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).context("cannot connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"?").context("cannot send")?;
    let mut back = [0];
    stream.read_exact(&mut back).context("nothing came back")?;
    ensure!(back == *b"?", "something else came back");
    Ok(())
}
