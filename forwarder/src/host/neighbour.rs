//! Neighbours (ARP, NDP) as the kernel knows them, in a cache that is kept by its notifications, and what counts as a
//! change: the MAC address, or whether packets can be sent there. A neighbour that turns stale and is confirmed again,
//! every half minute, is none. The kernel bounds its tables (`gc_thresh3`, 1,024 each), and thereby this one.

use super::{HostError, Result};
use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use std::collections::HashMap;
use std::net::IpAddr;

/// What the kernel knows about reaching a neighbour: the NUD states of neighbour.h, as far as they differ for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Confirmed lately (REACHABLE).
    Reachable,
    /// Not confirmed for a while, but nothing speaks against it (STALE). Nobody checks unless it is used.
    Stale,
    /// Being checked after it was stale (DELAY, PROBE).
    Probing,
    /// Set by hand or needing no resolution (PERMANENT, NOARP).
    Fixed,
    /// Asked for, without an answer so far (INCOMPLETE, NONE).
    Unresolved,
    /// Nobody has answered (FAILED).
    Failed,
}

impl NeighbourState {
    fn from_nud(nud: u16) -> Self {
        match nud {
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 | 0x10 => Self::Probing,
            0x40 | 0x80 => Self::Fixed,
            0x20 => Self::Failed,
            _ => Self::Unresolved,
        }
    }
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address. None while it is not usable, and where the link has none of 6 bytes.
    pub mac: Option<[u8; 6]>,
    /// What the kernel knows.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Whether packets can be sent there: the kernel's NUD_VALID, which `bpf_fib_lookup` goes by.
    pub fn is_usable(&self) -> bool {
        !matches!(self.state, NeighbourState::Unresolved | NeighbourState::Failed)
    }

    /// What senders depend on.
    fn essence(&self) -> (Option<[u8; 6]>, bool) {
        (self.mac, self.is_usable())
    }
}

/// Interface and address.
pub(super) type Key = (u32, IpAddr);

/// All neighbours that were heard of.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Neighbour>,
}

impl Cache {
    pub fn get(&self, key: &Key) -> Option<Neighbour> {
        self.entries.get(key).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, Neighbour)> {
        self.entries.iter().map(|(key, neighbour)| (*key, *neighbour))
    }

    /// Takes a neighbour's new state, `None` if it is gone, and returns whether that is a change.
    pub fn apply(&mut self, key: Key, neighbour: Option<Neighbour>) -> bool {
        let before = match neighbour {
            Some(neighbour) => self.entries.insert(key, neighbour),
            None => self.entries.remove(&key),
        };
        let essence = |neighbour: Option<Neighbour>| neighbour.map_or((None, false), |neighbour| neighbour.essence());
        essence(before) != essence(neighbour)
    }

    /// Takes the whole truth and returns the neighbours that have changed.
    pub fn replace(&mut self, all: Vec<(Key, Neighbour)>) -> Vec<Key> {
        let all: HashMap<_, _> = all.into_iter().collect();
        let gone: Vec<_> = self.entries.keys().filter(|key| !all.contains_key(key)).copied().collect();
        let news = all.into_iter().map(|(key, neighbour)| (key, Some(neighbour)));
        let news: Vec<_> = news.chain(gone.into_iter().map(|key| (key, None))).collect();
        news.into_iter().filter(|(key, neighbour)| self.apply(*key, *neighbour)).map(|(key, _)| key).collect()
    }

    /// Drops the neighbours on an interface that is no more.
    pub fn forget_interface(&mut self, ifindex: u32) {
        self.entries.retain(|(on, _), _| *on != ifindex);
    }
}

/// A neighbour from the kernel's words; `None` for what is no unicast neighbour: bridges' forwarding entries, proxies,
/// multicast addresses.
pub(super) fn parse(message: &NeighbourMessage) -> Option<(Key, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    if address.is_multicast() {
        return None;
    }
    let state = NeighbourState::from_nud(message.header.state.into());
    let mut neighbour = Neighbour { mac: None, state };
    if neighbour.is_usable() {
        neighbour.mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
    }
    Some(((message.header.ifindex, address), neighbour))
}

/// All neighbours of the namespace.
pub(super) async fn read_all(handle: &Handle) -> Result<Vec<(Key, Neighbour)>> {
    let all = handle.neighbours().get().execute();
    all.try_filter_map(|message| std::future::ready(Ok(parse(&message))))
        .try_collect()
        .await
        .map_err(|error| HostError::netlink("list the neighbours".to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::AddressFamily;
    use std::net::Ipv4Addr;

    const KEY: Key = (3, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));

    fn message(address: Ipv4Addr, nud: u16, mac: &[u8]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 3;
        message.header.state = nud.into();
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message
    }

    fn neighbour(nud: u16, last: u8) -> Neighbour {
        parse(&message(Ipv4Addr::new(10, 0, 0, 1), nud, &[2, 0, 0, 0, 0, last])).unwrap().1
    }

    #[test]
    fn only_mac_and_usability_are_changes() {
        let mut cache = Cache::default();
        for (step, nud, mac, changes) in [
            ("asked for", 0x01, 1, false),
            ("answered", 0x02, 1, true),
            ("stale", 0x04, 1, false),
            ("delay", 0x08, 1, false),
            ("probe", 0x10, 1, false),
            ("reachable", 0x02, 1, false),
            ("another mac", 0x02, 2, true),
            ("failed", 0x20, 2, true),
            ("asked again", 0x01, 2, false),
            ("permanent", 0x80, 2, true),
        ] {
            assert_eq!(cache.apply(KEY, Some(neighbour(nud, mac))), changes, "{step}");
        }
        assert!(cache.apply(KEY, None), "gone");
        assert!(!cache.apply(KEY, None), "gone again");
        assert_eq!(cache.get(&KEY), None);
    }

    #[test]
    fn the_whole_truth_is_compared() {
        let mut cache = Cache::default();
        let other: Key = (3, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(cache.replace(vec![(KEY, neighbour(0x02, 1))]), [KEY]);
        assert_eq!(cache.replace(vec![(KEY, neighbour(0x04, 1))]), []);
        assert_eq!(cache.replace(vec![(KEY, neighbour(0x04, 1)), (other, neighbour(0x20, 1))]), []);
        assert_eq!(cache.replace(vec![(other, neighbour(0x02, 1))]).len(), 2);
        cache.forget_interface(3);
        assert_eq!(cache.iter().count(), 0);
    }

    #[test]
    fn what_is_no_neighbour() {
        assert!(parse(&message(Ipv4Addr::new(224, 0, 0, 1), 0x40, &[1; 6])).is_none());
        let mut proxy = message(Ipv4Addr::new(10, 0, 0, 1), 0x80, &[2; 6]);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert!(parse(&proxy).is_none());
        assert!(parse(&NeighbourMessage::default()).is_none());
        let infiniband = parse(&message(Ipv4Addr::new(10, 0, 0, 1), 0x02, &[2; 20])).unwrap().1;
        assert_eq!((infiniband.mac, infiniband.is_usable()), (None, true));
    }
}
