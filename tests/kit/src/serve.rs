//! Servers for tests, as threads inside a namespace. They remember every peer, so a test can ask whom the server saw.
//!
//! Each stops when its value is dropped; sockets wake every 50 ms to look.

use crate::netns::Netns;
use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const WAKE: Duration = Duration::from_millis(50);
/// No test leaves a connection silent for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub struct Served {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    requests: AtomicU64,
    peers: Mutex<BTreeSet<SocketAddr>>,
}

impl Served {
    /// Who came, with ports.
    pub fn peers(&self) -> BTreeSet<SocketAddr> {
        self.shared.peers.lock().expect("no server thread panics with the lock").clone()
    }

    /// From which addresses they came.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.peers().iter().map(|peer| peer.ip().to_canonical()).collect()
    }

    /// Requests, connections or datagrams served.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr; there is nothing to add in a drop.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, peer: SocketAddr) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.peers.lock().expect("no server thread panics with the lock").insert(peer);
    }
}

/// A web server on `port` of all addresses: `GET /<n>` returns n bytes, `PUT` takes any body. Eight at once.
///
/// # Errors
/// When the port is taken.
pub fn http(netns: &Netns, port: u16) -> Result<Served> {
    tcp(netns, &[port], 8, http_connection)
}

/// Answers every TCP connection's bytes with themselves until the client closes; `threads` connections at once per port.
///
/// # Errors
/// When a port is taken.
pub fn tcp_echo(netns: &Netns, ports: &[u16], threads: usize) -> Result<Served> {
    tcp(netns, ports, threads, |shared, mut stream| {
        let mut buffer = [0; 65_536];
        while let Some(length) = read_some(shared, &mut stream, &mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    })
}

/// Sends every datagram back to where it came from; all `ports` in one thread each.
///
/// # Errors
/// When a port is taken.
pub fn udp_echo(netns: &Netns, ports: &[u16]) -> Result<Served> {
    udp(netns, ports, |datagram| Some(datagram.to_vec()))
}

/// Takes every datagram and answers none.
///
/// # Errors
/// When a port is taken.
pub fn udp_sink(netns: &Netns, port: u16) -> Result<Served> {
    udp(netns, &[port], |_| None)
}

/// A name server on port 53, UDP and TCP: every name has the address 192.0.2.53.
///
/// # Errors
/// When the port is taken.
pub fn dns(netns: &Netns) -> Result<(Served, Served)> {
    let udp = udp(netns, &[53], dns_answer)?;
    let tcp = tcp(netns, &[53], 2, |_, mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            let Some(answer) = stream.read_exact(&mut query).ok().and_then(|()| dns_answer(&query)) else { return };
            let length = (answer.len() as u16).to_be_bytes();
            if stream.write_all(&[&length[..], &answer].concat()).is_err() {
                return;
            }
        }
    })?;
    Ok((udp, tcp))
}

fn tcp(
    netns: &Netns,
    ports: &[u16],
    threads: usize,
    handle: impl Fn(&Shared, TcpStream) + Copy + Send + 'static,
) -> Result<Served> {
    let shared = Arc::new(Shared::default());
    let listeners = netns.enter(|| ports.iter().map(|port| listen(*port)).collect::<Result<Vec<_>>>())?;
    let mut served = Served { shared: shared.clone(), threads: Vec::new() };
    for listener in listeners {
        for _ in 0..threads {
            let (listener, shared) = (listener.try_clone().context("cannot share a listener")?, shared.clone());
            served.threads.push(std::thread::spawn(move || accept(&listener, &shared, handle)));
        }
    }
    Ok(served)
}

fn accept(listener: &TcpListener, shared: &Shared, handle: impl Fn(&Shared, TcpStream)) {
    while !shared.stopped() {
        let Ok((stream, peer)) = listener.accept() else { continue };
        shared.count(peer);
        // Without the time limit a lost client would keep the thread; a socket that refuses it is closed already.
        if stream.set_read_timeout(Some(WAKE)).is_ok() && stream.set_nodelay(true).is_ok() {
            handle(shared, stream);
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).context("cannot open a socket")?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(WAKE))?;
    let address = SocketAddr::from(([0u16; 8], port));
    socket.bind(&address.into()).with_context(|| format!("cannot listen on TCP port {port}"))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn udp(
    netns: &Netns,
    ports: &[u16],
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Copy + Send + 'static,
) -> Result<Served> {
    let shared = Arc::new(Shared::default());
    let mut served = Served { shared: shared.clone(), threads: Vec::new() };
    for port in ports {
        // One socket per family: answers of a socket for both would have to choose their source address.
        for any in [IpAddr::from([0u8; 4]), IpAddr::from([0u16; 8])] {
            let socket = netns.enter(|| udp_socket(SocketAddr::new(any, *port)))?;
            let shared = shared.clone();
            served.threads.push(std::thread::spawn(move || answer_datagrams(&socket, &shared, answer)));
        }
    }
    Ok(served)
}

fn udp_socket(address: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // What the machine allows is enough.
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.set_read_timeout(Some(WAKE))?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind UDP {address}"))?;
    Ok(socket.into())
}

fn answer_datagrams(socket: &UdpSocket, shared: &Shared, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 65_536];
    while !shared.stopped() {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        shared.count(peer);
        if let Some(answer) = answer(&buffer[..length]) {
            // The peer may be gone; that is its business.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// Some bytes, or `None` at the end of the stream, of the server or of all patience.
fn read_some(shared: &Shared, stream: &mut TcpStream, buffer: &mut [u8]) -> Option<usize> {
    let mut waited = Duration::ZERO;
    while !shared.stopped() && waited < PATIENCE {
        match stream.read(buffer) {
            Ok(0) => return None,
            Ok(length) => return Some(length),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => waited += WAKE,
            Err(_) => return None,
        }
    }
    None
}

fn http_connection(shared: &Shared, mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 65_536];
    let head = loop {
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        let Some(length) = read_some(shared, &mut stream, &mut buffer) else { return };
        request.extend_from_slice(&buffer[..length]);
    };
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let mut due = header(&text, "content-length:").saturating_sub(request.len() - head);
    if text.contains("100-continue") && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
        return;
    }
    while due > 0 {
        let Some(length) = read_some(shared, &mut stream, &mut buffer) else { return };
        due = due.saturating_sub(length);
    }
    let path = text.split_whitespace().nth(1).unwrap_or_default();
    let body = vec![b'x'; path.trim_start_matches('/').parse().unwrap_or(2)];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The client may have gone; then it will complain itself.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn header(text: &str, name: &str) -> usize {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// RFC 1035: the question back with one A record, name as a pointer to it.
fn dns_answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += 1 + usize::from(query[at]);
    }
    let question = query.get(12..at + 5)?;
    let mut answer = query[..2].to_vec();
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
    Some(answer)
}
