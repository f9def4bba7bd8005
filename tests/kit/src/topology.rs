//! Two little networks around an appliance, as values. Nothing of them is visible outside their namespaces.
//!
//! ```text
//! two-armed   client0 --- inside [appliance] outside --- app [world] srv --- eth0 [server]
//!             client1 --- inside1
//!
//! one-armed   client0 --- c0 [world] app --- eth0 [appliance]
//!             client1 --- c1         srv --- eth0 [server]
//! ```
//!
//! In the one-armed shape `world` is the VPC's router: its route table sends the clients' traffic for the world to the
//! appliance and everything else directly; IPv6 answers, which are not translated, go back through the appliance as an
//! edge route table would send them.
//!
//! | net | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | client n | 10.0.(n+1).0/24, client .10, router .1 | 2001:db8:1:n::/64, ::10, ::1 |
//! | outside | 198.51.100.0/24, appliance .10, more .11 …, router .1 | 2001:db8:1:ff::/64, ::10, ::1 |
//! | server | 203.0.113.0/24, server .10, router .1 | 2001:db8:3::/64, ::10, ::1 |
//!
//! # What makes veth behave like a wire
//! Offloads are off at every end, or checksums are left to a NIC that does not exist; GRO is on, because without NAPI at
//! the receiving end veth drops redirected frames.

use crate::netns::Netns;
use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};

/// How the appliance is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Inside and outside interface.
    TwoArmed,
    /// One interface for both.
    OneArmed,
}

/// What to build. Start with [`Options::default`]: two-armed, one client, one queue, one public address, MTU 1,500.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the appliance is wired.
    pub shape: Shape,
    /// Number of clients, each with a network of its own; 1 to 200.
    pub clients: usize,
    /// MTU in bytes of the clients' legs.
    pub inside_mtu: u32,
    /// MTU in bytes of the appliance's outside leg (of its only leg when one-armed).
    pub outside_mtu: u32,
    /// MTU in bytes of the server's leg.
    pub server_mtu: u32,
    /// Queues per direction of every interface.
    pub queues: u32,
    /// Addresses on the appliance's outside interface, 198.51.100.10 and on; 1 to 200.
    pub public_addresses: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shape: Shape::TwoArmed,
            clients: 1,
            inside_mtu: 1500,
            outside_mtu: 1500,
            server_mtu: 1500,
            queues: 1,
            public_addresses: 1,
        }
    }
}

/// A network of namespaces; removed when dropped.
#[derive(Debug)]
pub struct Topology {
    /// What it was built from.
    pub options: Options,
    /// The clients, in order.
    pub clients: Vec<Netns>,
    /// Where the forwarder runs. Its sysctls are the kernel's defaults: the forwarder has to see to them.
    pub appliance: Netns,
    /// The router between outside and server, and when one-armed between all.
    pub world: Netns,
    /// The server.
    pub server: Netns,
}

impl Topology {
    /// Builds it.
    ///
    /// # Errors
    /// The first command that failed, with its words.
    pub fn new(options: Options) -> Result<Self> {
        let clients = (0..options.clients).map(|n| Netns::new(&format!("client{n}"))).collect::<Result<_>>()?;
        let (appliance, world, server) = (Netns::new("appliance")?, Netns::new("world")?, Netns::new("server")?);
        let topology = Self { options, clients, appliance, world, server };
        topology.build_world()?;
        for n in 0..topology.options.clients {
            topology.build_client(n)?;
        }
        if topology.options.shape == Shape::OneArmed {
            topology.build_vpc_routes()?;
        }
        topology.build_default_routes()?;
        Ok(topology)
    }

    /// Two-armed with defaults.
    ///
    /// # Errors
    /// See [`Topology::new`].
    pub fn two_armed() -> Result<Self> {
        Self::new(Options::default())
    }

    /// One-armed with defaults.
    ///
    /// # Errors
    /// See [`Topology::new`].
    pub fn one_armed() -> Result<Self> {
        Self::new(Options { shape: Shape::OneArmed, ..Options::default() })
    }

    /// The appliance's outside (or only) interface.
    pub fn outside(&self) -> &'static str {
        if self.options.shape == Shape::OneArmed { "eth0" } else { "outside" }
    }

    /// The appliance's interface towards client `n`.
    pub fn inside(&self, n: usize) -> String {
        match (self.options.shape, n) {
            (Shape::OneArmed, _) => "eth0".to_owned(),
            (Shape::TwoArmed, 0) => "inside".to_owned(),
            (Shape::TwoArmed, n) => format!("inside{n}"),
        }
    }

    /// IPv4 address of client `n`.
    pub fn client_v4(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, n as u8 + 1, 10)
    }

    /// IPv6 address of client `n`.
    pub fn client_v6(&self, n: usize) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, n as u16, 0, 0, 0, 0x10)
    }

    /// The appliance's public address number `n`; 0 is the interface's own.
    pub fn public_v4(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, 10 + n as u8)
    }

    /// The appliance's outside IPv6 address.
    pub fn public_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0xff, 0, 0, 0, 0x10)
    }

    /// The server's IPv4 address.
    pub fn server_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, 10)
    }

    /// The server's IPv6 address.
    pub fn server_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10)
    }

    /// The interfaces part of a config file for this network.
    pub fn config(&self) -> String {
        let interface = |name: &str, role: &str| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n\n");
        if self.options.shape == Shape::OneArmed {
            return interface("eth0", "both");
        }
        let inside = (0..self.options.clients).map(|n| interface(&self.inside(n), "inside"));
        std::iter::once(interface("outside", "outside")).chain(inside).collect()
    }

    /// Deletes the link of client `n`, and with it the interface that it ends in.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn cut_client(&self, n: usize) -> Result<()> {
        self.clients[n].ip("link del eth0").map(drop)
    }

    /// Makes the link of client `n` again, with the same names and addresses and other MACs.
    ///
    /// # Errors
    /// When it is there.
    pub fn mend_client(&self, n: usize) -> Result<()> {
        self.build_client(n)
    }

    fn build_world(&self) -> Result<()> {
        let options = &self.options;
        // A router that loses no ICMP error to rate limits and asks no questions about return paths.
        self.world.set_sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            // One-armed, its own ICMP errors come back through it, translated.
            ("net.ipv4.conf.all.accept_local", "1"),
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv4.icmp_msgs_per_sec", "100000"),
            ("net.ipv6.icmp.ratelimit", "0"),
        ])?;
        self.server.set_sysctls(&[("net.ipv4.icmp_ratelimit", "0"), ("net.ipv6.icmp.ratelimit", "0")])?;
        self.link((&self.appliance, self.outside()), (&self.world, "app"), options.outside_mtu)?;
        self.link((&self.server, "eth0"), (&self.world, "srv"), options.server_mtu)?;
        for n in 0..options.public_addresses {
            self.appliance.ip(&format!("address add {}/24 dev {}", self.public_v4(n), self.outside()))?;
        }
        self.appliance.ip(&format!("address add {}/64 nodad dev {}", self.public_v6(), self.outside()))?;
        address(&self.world, "app", "198.51.100.1/24", "2001:db8:1:ff::1/64")?;
        address(&self.world, "srv", "203.0.113.1/24", "2001:db8:3::1/64")?;
        address(&self.server, "eth0", "203.0.113.10/24", "2001:db8:3::10/64")
    }

    fn build_client(&self, n: usize) -> Result<()> {
        let (client, interface, inside) = (&self.clients[n], format!("c{n}"), self.inside(n));
        let (router, interface) = match self.options.shape {
            Shape::TwoArmed => (&self.appliance, inside),
            Shape::OneArmed => (&self.world, interface),
        };
        self.link((client, "eth0"), (router, &interface), self.options.inside_mtu)?;
        let (net_v4, net_v6) = (n + 1, format!("2001:db8:1:{n:x}"));
        address(router, &interface, &format!("10.0.{net_v4}.1/24"), &format!("{net_v6}::1/64"))?;
        address(client, "eth0", &format!("10.0.{net_v4}.10/24"), &format!("{net_v6}::10/64"))?;
        client.ip(&format!("route add default via 10.0.{net_v4}.1"))?;
        client.ip(&format!("-6 route add default via {net_v6}::1"))?;
        Ok(())
    }

    fn build_vpc_routes(&self) -> Result<()> {
        let world = &self.world;
        for n in 0..self.options.clients {
            world.ip(&format!("rule add iif c{n} lookup 100"))?;
            world.ip(&format!("-6 rule add iif c{n} lookup 100"))?;
        }
        world.ip("route add throw 10.0.0.0/8 table 100")?;
        world.ip("route add throw 198.51.100.0/24 table 100")?;
        world.ip("route add default via 198.51.100.10 table 100")?;
        world.ip("-6 route add throw 2001:db8:1::/48 table 100")?;
        world.ip("-6 route add throw 2001:db8:1:ff::/64 table 100")?;
        world.ip("-6 route add default via 2001:db8:1:ff::10 table 100")?;
        world.ip("-6 rule add iif srv lookup 101")?;
        world.ip("-6 route add 2001:db8:1::/48 via 2001:db8:1:ff::10 table 101")?;
        Ok(())
    }

    fn build_default_routes(&self) -> Result<()> {
        self.appliance.ip("route add default via 198.51.100.1")?;
        self.appliance.ip("-6 route add default via 2001:db8:1:ff::1")?;
        self.server.ip("route add default via 203.0.113.1")?;
        self.server.ip("-6 route add default via 2001:db8:3::1")?;
        if self.options.shape == Shape::TwoArmed {
            self.world.ip("-6 route add 2001:db8:1::/48 via 2001:db8:1:ff::10")?;
        }
        Ok(())
    }

    fn link(&self, one: (&Netns, &str), other: (&Netns, &str), mtu: u32) -> Result<()> {
        link(one, other, mtu, self.options.queues)
    }
}

/// A veth pair between two namespaces, offloads off, GRO on, up. Ends are (namespace, interface name).
///
/// # Errors
/// The command that failed.
pub fn link(one: (&Netns, &str), other: (&Netns, &str), mtu: u32, queues: u32) -> Result<()> {
    let shape = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
    let (name, peer, peer_netns) = (one.1, other.1, other.0.name());
    one.0.ip(&format!("link add {name} {shape} type veth peer name {peer} {shape} netns {peer_netns}"))?;
    // At both ends before either is up: only then does the kernel take note that the other end can take redirected frames.
    for (netns, name) in [one, other] {
        netns.run("ethtool", &format!("-K {name} tx off tso off gso off gro on"))?;
    }
    for (netns, name) in [one, other] {
        netns.ip(&format!("link set {name} up"))?;
    }
    Ok(())
}

fn address(netns: &Netns, interface: &str, v4: &str, v6: &str) -> Result<()> {
    netns.ip(&format!("address add {v4} dev {interface}"))?;
    netns.ip(&format!("address add {v6} nodad dev {interface}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Options, Shape, Topology};

    /// With the kernel in the appliance's place: everything but the forwarder works.
    #[test]
    fn clients_reach_servers_through_a_kernel_router() {
        for shape in [Shape::TwoArmed, Shape::OneArmed] {
            let topology = Topology::new(Options { shape, clients: 2, queues: 2, ..Options::default() }).unwrap();
            let on = [("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")];
            topology.appliance.set_sysctls(&on).unwrap();
            if shape == Shape::TwoArmed {
                topology.world.ip("route add 10.0.0.0/16 via 198.51.100.10").unwrap();
            }
            for client in &topology.clients {
                client.run("ping", "-c 2 -i 0.01 -W 2 -q 203.0.113.10").unwrap();
                client.run("ping", "-c 2 -i 0.01 -W 2 -q 2001:db8:3::10").unwrap();
                let hops = client.run("traceroute", "-n -q 1 -w 1 2001:db8:3::10").unwrap();
                let appliance = if shape == Shape::OneArmed { "2001:db8:1:ff::10" } else { "2001:db8:1:" };
                assert!(hops.lines().skip(1).any(|line| line.contains(appliance)), "{hops}");
            }
        }
    }

    #[test]
    fn nothing_is_left_behind() {
        let topology = Topology::two_armed().unwrap();
        let names: Vec<_> = [&topology.appliance, &topology.world, &topology.server, &topology.clients[0]]
            .map(|netns| netns.path())
            .into();
        assert!(names.iter().all(|path| path.exists()));
        drop(topology);
        assert!(!names.iter().any(|path| path.exists()));
    }
}
