//! Questions to the kernel and orders to it, over rtnetlink; what changes comes through `events`.
//!
//! # Why neighbours have to be asked for
//! A packet that the host forwards or sends itself starts ARP or NDP, and checks a stale neighbour by being sent to it.
//! A packet forwarded by XDP never touches the kernel's neighbour entry: `bpf_fib_lookup` only reads it, and a flow in
//! the datapath does not even do that. So nobody would resolve an absent neighbour, and nobody would find out that a
//! stale one is gone. [`Netlink::resolve`] does what a packet would have done.

use super::events::{HostEvent, Reader, Shared};
use super::neighbour::{self, Neighbour, NeighbourState};
use super::{HostError, Result, local_port_range, memory_bytes};
use crate::plan::{HostFacts, Link};
use futures::{StreamExt, TryStreamExt};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle, RouteMessageBuilder};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Addresses that are somewhere in the Internet, to ask the kernel where it would send what has no better route: those
/// of a root name server (root-servers.net, A), to which hardly anybody has a route of its own. Nothing is sent there.
const SOMEWHERE_V4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
const SOMEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);

/// Room for news in the kernel, in bytes: some 5,000 routes while our thread does not run.
const BUFFER_BYTES: usize = 4 << 20;

/// The kernel's routing sockets of one network namespace. Dropping it closes them.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Netlink {
    /// Opens the sockets in the calling thread's network namespace, starts their tasks on the current runtime, and
    /// reads the neighbours.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn open() -> Result<Self> {
        Self::open_with(BUFFER_BYTES).await
    }

    async fn open_with(buffer_bytes: usize) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(HostError::NetlinkSocket)?;
        let shared = Arc::new(Shared::default());
        // Listening comes before reading: a change in between is then heard.
        let reader = Reader::open(Arc::clone(&shared), handle.clone(), buffer_bytes)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        shared.fill(neighbour::read_all(&handle).await?);
        tasks.spawn(reader.run());
        Ok(Self { handle, shared, _tasks: tasks })
    }

    /// Waits for a change. May be cancelled; for one consumer at a time. A storm of changes is few events, so the
    /// consumer may do what an event is worth each time. What the facts say while they change is followed by an event.
    pub async fn next_event(&self) -> HostEvent {
        self.shared.next_event().await
    }

    /// Links, addresses, default routes, memory and ports, as they are now. A default route is where the kernel would
    /// send a packet for the Internet: a full table without a default route has one in this sense, and so have two
    /// routes for half the Internet each; and it is one question, not a dump of a million routes.
    ///
    /// # Errors
    /// When the kernel does not answer, or /proc cannot be read.
    pub async fn facts(&self) -> Result<HostFacts> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        let links = links.map_err(|error| HostError::netlink("list the interfaces".to_owned(), error))?;
        let addresses = self.handle.address().get().execute().try_collect::<Vec<_>>().await;
        let addresses = addresses.map_err(|error| HostError::netlink("list the addresses".to_owned(), error))?;
        let mut by_link = HashMap::<u32, Vec<&AddressMessage>>::new();
        for address in &addresses {
            by_link.entry(address.header.index).or_default().push(address);
        }
        let links = links.iter().filter_map(|link| {
            parse_link(link, by_link.get(&link.header.index).map(Vec::as_slice).unwrap_or_default())
        });
        Ok(HostFacts {
            links: links.collect(),
            default_route_v4: self.read_default_route(SOMEWHERE_V4.into()).await?,
            default_route_v6: self.read_default_route(SOMEWHERE_V6.into()).await?,
            memory_bytes: memory_bytes()?,
            local_port_range: local_port_range()?,
        })
    }

    /// Has the kernel resolve a neighbour that it does not know, or check one that is stale (it waits for other signs
    /// of life first, `delay_first_probe_time`, 5 s); what is confirmed or being resolved stays as it is. The entry
    /// counts as used. What comes of it is an event. This is RTM_NEWNEIGH with NTF_USE, `ip neighbour add … use`; see
    /// the module for why.
    ///
    /// # Errors
    /// When there is no such interface, the address cannot be on a link, or the neighbour table is full.
    pub async fn resolve(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        let (family, destination) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
        };
        message.header.family = family;
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(destination));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let failed = |error| HostError::netlink(format!("have {address} on interface {ifindex} resolved"), error);
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(failed(Error::NetlinkError(error)));
            }
        }
        Ok(())
    }

    /// What the kernel knows of a neighbour, as far as its news have come through; asks nobody.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<Neighbour> {
        self.shared.with_cache(|cache| cache.get(&(ifindex, address)))
    }

    /// The stale neighbours with interface and MAC: those that flows use should be checked with [`Netlink::resolve`].
    pub fn stale(&self) -> Vec<(u32, IpAddr, [u8; 6])> {
        self.shared.with_cache(|cache| {
            let stale = cache.iter().filter(|(_, neighbour)| neighbour.state == NeighbourState::Stale);
            stale.filter_map(|((ifindex, address), neighbour)| Some((ifindex, address, neighbour.mac?))).collect()
        })
    }

    /// The id of the XDP program on an interface, whoever attached it and in whichever mode.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel does not answer.
    pub async fn attached_xdp(&self, ifindex: u32) -> Result<Option<u32>> {
        let mut links = std::pin::pin!(self.handle.link().get().match_index(ifindex).execute());
        let link = links
            .try_next()
            .await
            .map_err(|error| HostError::netlink(format!("ask for the XDP program on interface {ifindex}"), error))?;
        Ok(link.as_ref().and_then(parse_xdp))
    }

    async fn read_default_route(&self, somewhere: IpAddr) -> Result<Option<u32>> {
        let (mut message, length, destination) = match somewhere {
            IpAddr::V4(address) => (RouteMessageBuilder::<Ipv4Addr>::new().build(), 32, address.into()),
            IpAddr::V6(address) => (RouteMessageBuilder::<Ipv6Addr>::new().build(), 128, address.into()),
        };
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(destination));
        let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
        match routes.try_next().await {
            Ok(route) => Ok(route.and_then(|route| {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(ifindex) => Some(*ifindex),
                    _ => None,
                })
            })),
            // Whatever the kernel says (unreachable, prohibited, no such family): there is no way out.
            Err(Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(HostError::netlink(format!("ask for the route to {somewhere}"), error)),
        }
    }
}

impl HostError {
    pub(super) fn netlink(action: String, error: Error) -> Self {
        let source = match error {
            Error::NetlinkError(message) => message.to_io().into(),
            other => other.into(),
        };
        Self::Netlink { action, source }
    }
}

/// `None` for what has no name: not an interface.
fn parse_link(message: &LinkMessage, addresses: &[&AddressMessage]) -> Option<Link> {
    let mut name = None;
    let mut mac = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Address(value) => mac = value.as_slice().try_into().ok(),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    let flags = message.header.flags;
    let loopback = flags.contains(LinkFlags::Loopback);
    let (addresses_v4, addresses_v6) = parse_addresses(addresses);
    Some(Link {
        name: name?,
        ifindex: message.header.index,
        // The loopback's is all zeros.
        mac: mac.filter(|_| !loopback),
        mtu,
        up: flags.contains(LinkFlags::Up),
        loopback,
        addresses_v4,
        addresses_v6,
    })
}

/// The addresses of a link in the order of preference: the kernel's, but IPv4 secondaries after primaries, and IPv6
/// preferred, lasting and global before the others. One that somebody else has too (duplicate) is none.
fn parse_addresses(messages: &[&AddressMessage]) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for message in messages {
        let flags = read_flags(message);
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        // On a point-to-point link ADDRESS is the other end's; IPv6 has LOCAL there only.
        let address = own.or(message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        }));
        match address.and_then(|address| IpNet::new(address, message.header.prefix_len).ok()) {
            Some(IpNet::V4(net)) => v4.push((flags.contains(AddressFlags::Secondary), net)),
            Some(IpNet::V6(net)) if !flags.contains(AddressFlags::Dadfailed) => {
                let short_lived = flags.intersects(AddressFlags::Deprecated | AddressFlags::Secondary);
                v6.push(((net.addr().is_unicast_link_local(), short_lived), net));
            }
            _ => {}
        }
    }
    // Stable, so that the kernel's order stays within a rank.
    v4.sort_by_key(|(rank, _)| *rank);
    v6.sort_by_key(|(rank, _)| *rank);
    (v4.into_iter().map(|(_, net)| net).collect(), v6.into_iter().map(|(_, net)| net).collect())
}

/// The attribute has all flags, the header only the first eight.
fn read_flags(message: &AddressMessage) -> AddressFlags {
    let all = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or(AddressFlags::from_bits_retain(message.header.flags.bits().into()))
}

/// With programs in several modes there is no PROG_ID but one for each mode.
fn parse_xdp(message: &LinkMessage) -> Option<u32> {
    let xdp = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    })?;
    xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if *id != 0 => {
            Some(*id)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::Netns;
    use super::*;
    use std::time::{Duration, Instant};
    use tokio::time::{sleep, timeout};

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const PEER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    /// eth0 with 10.0.0.2 and 2001:db8::2, joined to p0 with .1 and ::1.
    fn pair() -> (Netns, Netns) {
        let (host, world) = (Netns::new(), Netns::new());
        for netns in [&host, &world] {
            netns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        host.join("eth0", &world, "p0");
        host.ip("address add 10.0.0.2/24 dev eth0");
        host.ip("address add 2001:db8::2/64 nodad dev eth0");
        world.ip("address add 10.0.0.1/24 dev p0");
        world.ip("address add 2001:db8::1/64 nodad dev p0");
        (host, world)
    }

    fn index() -> u32 {
        nix::net::if_::if_nametoindex("eth0").unwrap()
    }

    /// Events until there is none for a moment.
    async fn drain(netlink: &Netlink) -> Vec<HostEvent> {
        let mut events = Vec::new();
        while let Ok(event) = timeout(Duration::from_millis(300), netlink.next_event()).await {
            events.push(event);
        }
        events
    }

    async fn wait_for(netlink: &Netlink, what: &str, is_it: impl Fn(&HostEvent) -> bool) {
        let found = timeout(Duration::from_secs(5), async { while !is_it(&netlink.next_event().await) {} });
        found.await.unwrap_or_else(|_| panic!("no event: {what}"));
    }

    fn has_mac(event: &HostEvent, of: IpAddr, wanted: Option<[u8; 6]>) -> bool {
        matches!(event, HostEvent::Neighbour { address, neighbour, .. }
            if *address == of && neighbour.and_then(|neighbour| neighbour.mac) == wanted)
    }

    #[test]
    fn facts_are_the_kernels() {
        let (host, _world) = pair();
        host.ip("link set eth0 address 02:00:00:00:00:02 mtu 1400");
        host.ip("address add 10.0.0.3/24 dev eth0");
        host.ip("address add 192.0.2.2/32 peer 192.0.2.1/32 dev eth0");
        host.ip("address add 2001:db8::3/64 nodad preferred_lft 0 dev eth0");
        host.ip("address add fd00::4/64 nodad dev eth0");
        let (facts, eth0) = host.block_on(async || (Netlink::open().await.unwrap().facts().await.unwrap(), index()));
        assert_eq!((facts.default_route_v4, facts.default_route_v6), (None, None));
        assert_eq!(facts.local_port_range, (32768, 60999));
        let lo = facts.links.iter().find(|link| link.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.mac, lo.up), ("lo", None, true));
        let link = facts.links.iter().find(|link| link.ifindex == eth0).unwrap();
        assert_eq!((link.name.as_str(), link.mac, link.mtu, link.up), ("eth0", Some([2, 0, 0, 0, 0, 2]), 1400, true));
        let v4: Vec<_> = link.addresses_v4.iter().map(ToString::to_string).collect();
        assert_eq!(v4, ["10.0.0.2/24", "192.0.2.2/32", "10.0.0.3/24"]);
        let v6: Vec<_> = link.addresses_v6.iter().map(ToString::to_string).collect();
        assert_eq!((v6[..3].iter().any(|net| net == "2001:db8::2/64"), v6[2].as_str()), (true, "2001:db8::3/64"));
        assert!(v6.len() == 4 && v6[3].starts_with("fe80::"), "{v6:?}");

        host.ip("route add 0.0.0.0/1 via 10.0.0.1");
        host.ip("route add 128.0.0.0/1 via 10.0.0.1");
        host.ip("-6 route add default via 2001:db8::1");
        let facts = host.block_on(async || Netlink::open().await.unwrap().facts().await.unwrap());
        assert_eq!((facts.default_route_v4, facts.default_route_v6), (Some(eth0), Some(eth0)));
        host.ip("link set eth0 down");
        host.ip("route add unreachable default");
        let facts = host.block_on(async || Netlink::open().await.unwrap().facts().await.unwrap());
        assert_eq!((facts.default_route_v4, facts.default_route_v6), (None, None));
        assert!(!facts.links.iter().any(|link| link.ifindex == eth0 && link.up));
    }

    #[test]
    fn resolving_tells_the_mac_and_what_becomes_of_it() {
        let (host, world) = pair();
        for family in ["ipv4", "ipv6"] {
            host.set_sysctl(&format!("{family}/neigh/eth0/delay_first_probe_time"), "0");
            host.set_sysctl(&format!("{family}/neigh/eth0/retrans_time_ms"), "100");
        }
        world.ip("link set p0 address 02:00:00:00:00:01");
        host.block_on(async || {
            let netlink = Netlink::open().await.unwrap();
            let eth0 = index();
            for peer in [PEER, PEER_V6] {
                assert_eq!(netlink.neighbour(eth0, peer), None);
                netlink.resolve(eth0, peer).await.unwrap();
                wait_for(&netlink, "resolved", |event| has_mac(event, peer, Some([2, 0, 0, 0, 0, 1]))).await;
                assert!(netlink.neighbour(eth0, peer).unwrap().is_usable());
                assert!(!drain(&netlink).await.iter().any(|event| matches!(event, HostEvent::Everything)));
                host.ip(&format!("neighbour change {peer} lladdr 02:00:00:00:00:01 nud stale dev eth0"));
                assert_eq!(drain(&netlink).await, [], "stale is no change");
                assert_eq!(netlink.stale(), [(eth0, peer, [2, 0, 0, 0, 0, 1])]);
                netlink.resolve(eth0, peer).await.unwrap();
                assert_eq!(drain(&netlink).await, [], "confirmed is no change");
                assert_eq!(netlink.neighbour(eth0, peer).unwrap().state, NeighbourState::Reachable);
                assert_eq!(netlink.stale(), []);
            }
            // Gone: the kernel finds out because it is asked to check.
            world.ip("address flush dev p0");
            for peer in [PEER, PEER_V6] {
                host.ip(&format!("neighbour change {peer} lladdr 02:00:00:00:00:01 nud stale dev eth0"));
                netlink.resolve(eth0, peer).await.unwrap();
                wait_for(&netlink, "unusable", |event| has_mac(event, peer, None)).await;
            }
            let error = netlink.resolve(9999, PEER).await.unwrap_err();
            assert_eq!(error.to_string(), "cannot have 10.0.0.1 on interface 9999 resolved over netlink");
            assert!(netlink.attached_xdp(eth0).await.unwrap().is_none());
            assert!(netlink.attached_xdp(9999).await.is_err());
        });
    }

    #[test]
    fn changes_are_told_by_kind() {
        let (host, _world) = pair();
        host.block_on(async || {
            let netlink = Netlink::open().await.unwrap();
            assert_eq!(drain(&netlink).await, []);
            for (command, expected) in [
                ("route add 192.0.2.0/24 via 10.0.0.1", vec![HostEvent::Routes]),
                ("-6 route add 2001:db8:1::/64 via 2001:db8::1", vec![HostEvent::Routes]),
                ("rule add fwmark 7 table 7", vec![HostEvent::Routes]),
                ("-6 rule add fwmark 7 table 7", vec![HostEvent::Routes]),
                ("nexthop add id 7 via 10.0.0.1 dev eth0", vec![HostEvent::Routes]),
                ("link set eth0 mtu 1400", vec![HostEvent::Links]),
                ("address add 10.1.0.1/24 dev lo", vec![HostEvent::Addresses, HostEvent::Routes]),
            ] {
                host.ip(command);
                let events = drain(&netlink).await;
                assert!(expected.iter().all(|kind| events.contains(kind)), "{command}: {events:?}");
            }
            host.ip("neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0");
            assert!(has_mac(&drain(&netlink).await[0], "10.0.0.9".parse().unwrap(), Some([2, 0, 0, 0, 0, 9])));
        });
    }

    /// 20,000 routes at once, into a buffer that holds them and into one that does not.
    #[test]
    fn a_routing_storm_is_bounded_work() {
        let (host, _world) = pair();
        let batch = tempfile::NamedTempFile::new().unwrap();
        let load = |via: &str| {
            let routes =
                (0..20_000).map(|n| format!("route replace 100.{}.{}.0/24 via {via}\n", 64 + n / 256, n % 256));
            std::fs::write(batch.path(), routes.collect::<String>()).unwrap();
            host.ip(&format!("-batch {}", batch.path().display()));
        };
        host.block_on(async || {
            let netlink = Netlink::open_with(64 << 20).await.unwrap();
            load("10.0.0.1");
            let begun = Instant::now();
            let events = drain(&netlink).await;
            println!("{events:?} after {:?}", begun.elapsed());
            assert!(events.len() <= 10 && events.iter().all(|event| *event == HostEvent::Routes), "{events:?}");
        });
        host.block_on(async || {
            let netlink = Netlink::open_with(64 << 10).await.unwrap();
            // Our runtime stands still meanwhile.
            host.ip("neighbour add 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0");
            load("10.0.0.3");
            host.ip("neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0");
            let events = drain(&netlink).await;
            assert!(events.contains(&HostEvent::Everything) && events.len() <= 10, "{events:?}");
            for last in [7, 9] {
                let address = Ipv4Addr::new(10, 0, 0, last).into();
                assert_eq!(netlink.neighbour(index(), address).unwrap().mac, Some([2, 0, 0, 0, 0, last]), "{events:?}");
            }
            sleep(Duration::from_millis(200)).await;
            host.ip("neighbour del 10.0.0.9 dev eth0");
            wait_for(&netlink, "it goes on", |event| has_mac(event, "10.0.0.9".parse().unwrap(), None)).await;
        });
    }

    #[test]
    fn programs_of_all_modes_count() {
        let mut link = LinkMessage::default();
        assert_eq!(parse_xdp(&link), None);
        link.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::ProgId(0)]));
        assert_eq!(parse_xdp(&link), None);
        link.attributes[0] = LinkAttribute::Xdp(vec![LinkXdp::SkbProgId(7), LinkXdp::HwProgId(8)]);
        assert_eq!(parse_xdp(&link), Some(7));
    }
}
