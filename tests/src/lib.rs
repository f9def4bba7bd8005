//! What the tests in namespaces share: a lab (topology and appliance), the two families, clients that check themselves.
//!
//! Every test here starts the real binary. Build it first (`cargo build -p forwarder`); `cargo xtask test` does.

pub mod records;

use anyhow::{Context, Result, ensure};
use forwarder_kit::topology::{Options, Shape};
use forwarder_kit::{Appliance, Netns, Topology};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// Keeps memory and start-up small; tests that need more say so.
pub const SMALL_TABLE: &str = "[flows]\nmax = \"64k\"\n";

/// A topology with the forwarder running in it. The forwarder goes first when dropped.
#[derive(Debug)]
pub struct Lab {
    /// The forwarder.
    pub appliance: Appliance,
    /// The network around it.
    pub net: Topology,
}

/// IP version of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4, translated.
    V4,
    /// IPv6, not translated.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl Lab {
    /// Builds the network and starts the forwarder with a small flow table.
    ///
    /// # Errors
    /// The command that failed, or the forwarder's log.
    pub fn new(options: Options) -> Result<Self> {
        Self::with_config(options, SMALL_TABLE)
    }

    /// Builds the network and starts the forwarder; `more` goes behind the interfaces in the config.
    ///
    /// # Errors
    /// The command that failed, or the forwarder's log.
    pub fn with_config(options: Options, more: &str) -> Result<Self> {
        let net = Topology::new(options)?;
        let appliance = Appliance::start(&net, more)?;
        Ok(Self { appliance, net })
    }

    /// One client, all defaults.
    ///
    /// # Errors
    /// See [`Lab::new`].
    pub fn of(shape: Shape) -> Result<Self> {
        Self::new(Options { shape, ..Options::default() })
    }

    /// The first client.
    pub fn client(&self) -> &Netns {
        &self.net.clients[0]
    }

    /// The server's address.
    pub fn server(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.net.server_v4().into(),
            Family::V6 => self.net.server_v6().into(),
        }
    }

    /// The first client's address as the server has to see it.
    pub fn seen(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.net.public_v4(0).into(),
            Family::V6 => self.net.client_v6(0).into(),
        }
    }

    /// `host:port` of the server as URLs write it.
    pub fn authority(&self, family: Family, port: u16) -> String {
        SocketAddr::new(self.server(family), port).to_string()
    }
}

/// Makes `#[test]`s `two_armed::NAME` and `one_armed::NAME` from functions `fn NAME(shape: Shape) -> Result<()>`.
#[macro_export]
macro_rules! in_both_shapes {
    ($($name:ident)*) => {
        mod two_armed {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(forwarder_kit::topology::Shape::TwoArmed)
            })*
        }
        mod one_armed {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(forwarder_kit::topology::Shape::OneArmed)
            })*
        }
    };
}

/// A TCP connection to an echo server that checks that every byte comes back.
#[derive(Debug)]
pub struct EchoConnection {
    stream: TcpStream,
    sent: u32,
}

impl EchoConnection {
    /// Connects from inside a namespace.
    ///
    /// # Errors
    /// When nobody answers within five seconds.
    pub fn open(from: &Netns, to: SocketAddr) -> Result<Self> {
        from.enter(|| {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let stream = stream.with_context(|| format!("cannot connect to {to}"))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.set_nodelay(true)?;
            Ok(Self { stream, sent: 0 })
        })
    }

    /// Sends the next number and waits for it to come back.
    ///
    /// # Errors
    /// When the connection broke, is silent for ten seconds, or something else came back.
    pub fn ping(&mut self) -> Result<()> {
        self.sent += 1;
        self.stream.write_all(&self.sent.to_be_bytes()).context("the connection broke while sending")?;
        let mut back = [0; 4];
        self.stream.read_exact(&mut back).context("the connection broke while receiving")?;
        ensure!(u32::from_be_bytes(back) == self.sent, "sent {}, got {back:?}", self.sent);
        Ok(())
    }

    /// Sends so many MiB and has all of it come back.
    ///
    /// # Errors
    /// When the connection broke, or is silent for ten seconds.
    pub fn stream(&mut self, mib: usize) -> Result<()> {
        let mut sender = self.stream.try_clone()?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || (0..mib).try_for_each(|_| sender.write_all(&[0; 1 << 20])));
            let mut back = vec![0; 1 << 20];
            for nth in 0..mib {
                self.stream.read_exact(&mut back).with_context(|| format!("MiB {nth} did not come back"))?;
            }
            sending.join().expect("the sender does not panic").context("the connection broke while sending")
        })
    }

    /// Ends the connection by a reset.
    ///
    /// # Errors
    /// When the socket does not take that.
    pub fn abort(self) -> Result<()> {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &linger)
            .context("cannot have the connection end by a reset")
    }

    /// The own end of the connection.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().context("cannot read the own address")
    }
}

/// A UDP counter of a namespace, such as `RcvbufErrors`.
///
/// # Errors
/// When there is no such counter.
pub fn snmp(netns: &Netns, family: Family, name: &str) -> Result<u64> {
    let read = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        netns.enter(|| std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))
    };
    let value = match family {
        Family::V4 => {
            let text = read("snmp")?;
            let mut lines = text.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
            let (names, values) = (lines.next().context("no UDP names")?, lines.next().context("no UDP values")?);
            names.zip(values).find(|(other, _)| *other == name).map(|(_, value)| value.to_owned())
        }
        Family::V6 => {
            let wanted = format!("Udp6{name}");
            let text = read("snmp6")?;
            let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
            lines.find(|(other, _)| *other == wanted).map(|(_, value)| value.trim().to_owned())
        }
    };
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no UDP counter {name}"))
}
