//! TCP connections of real sockets: open, see the server close, close. What it measures is first of all the two ends' own
//! kernels, on a machine of two cores; the difference between two devices is the devices'.

use crate::lab::Lab;
use crate::load::stay_on;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where servers listen: enough ports that no tuple comes again while its last use is remembered.
const PORTS: std::ops::Range<u16> = 8000..8016;
/// The servers' address.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// Clients that connect at the same time: while one waits for the VM to wake it, others run.
const CLIENTS: usize = 8;
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Connections opened and closed per second.
    pub(super) per_second: f64,
    /// Those that were not.
    pub(super) failed: u64,
}

/// Opens and closes connections for some time, clients on CPU 0 and servers on CPU 1.
pub(super) fn connect_and_close(lab: &Lab, length: Duration) -> Result<Outcome> {
    for netns in [&lab.client, &lab.server] {
        netns.set_sysctls(&[("net.ipv4.ip_local_port_range", "1024 65000")])?;
    }
    let listeners = lab.server.enter(|| PORTS.map(listen).collect::<Result<Vec<_>>>())?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let servers: Vec<_> = listeners.iter().map(|listener| scope.spawn(|| serve(listener, &stop))).collect();
        let begun = Instant::now();
        let counted = lab.client.enter(|| Ok(all_clients(length)));
        let took = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        for server in servers {
            server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let (done, failed) = counted?.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        Ok(Outcome { per_second: done as f64 / took.as_secs_f64(), failed })
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((SERVER, port)).with_context(|| format!("cannot listen on port {port}"))?;
    listener.set_nonblocking(true).context("cannot poll a listener")?;
    Ok(listener)
}

/// Accepts and closes.
fn serve(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    stay_on(1)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((connection, _)) => drop(connection),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(200)),
            Err(error) => return Err(error).context("cannot accept"),
        }
    }
    Ok(())
}

/// (done, failed) of each client. The threads are of the namespace of the calling one.
fn all_clients(length: Duration) -> Vec<(u64, u64)> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || connect(client, length))).collect();
        clients.into_iter().map(|client| client.join().unwrap_or((0, 1))).collect()
    })
}

fn connect(client: usize, length: Duration) -> (u64, u64) {
    let (begun, mut count) = (Instant::now(), (0, 0));
    if stay_on(0).is_err() {
        return (0, 1);
    }
    let mut ports = PORTS.cycle().skip(client * 2);
    while begun.elapsed() < length {
        let to = SocketAddr::from((SERVER, ports.next().unwrap_or(PORTS.start)));
        match once(to) {
            Ok(()) => count.0 += 1,
            Err(_) => count.1 += 1,
        }
    }
    count
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    // The server closes at once, so that it and not the client remembers the tuple for a minute.
    let read = connection.read(&mut [0; 1])?;
    if read == 0 { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}
