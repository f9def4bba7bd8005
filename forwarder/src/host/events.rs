//! What changes on the host, from the kernel's multicast groups. A storm, such as a BGP daemon that loads a full table,
//! becomes few events: the socket is read as fast as it fills, of most messages only the type is looked at, and what
//! waits for the consumer is a set, not a queue. So memory is bounded and the consumer's work is, too.
//!
//! ```text
//! kernel ──▶ socket ──▶ Reader (a task) ──▶ Shared { neighbours, what has changed } ──▶ Netlink::next_event
//! ```
//!
//! # Invariants
//! - A change is never lost: what cannot be told in detail (the socket's buffer ran over, a message makes no sense) is
//!   [`HostEvent::Everything`], and the neighbours are then read anew.
//! - The last change of a storm is followed by an event, at the latest [`HOLD_OFF`] after it.

use super::neighbour::{self, Cache, Key, Neighbour};
use super::{HostError, Result};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, MulticastGroup};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// At most one event of each kind (but for neighbours, which are one each) in this time.
pub(super) const HOLD_OFF: Duration = Duration::from_millis(100);

/// Neighbours that changed and were not asked for yet; above, they are [`HostEvent::Everything`].
const MAX_NEIGHBOURS: usize = 4096;

/// No notification is longer: the kernel makes them of at most 32 KiB.
const MAX_DATAGRAM: usize = 64 << 10;

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Something on the host has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Anything may have: notifications were lost. Read all facts anew and trust no cached route.
    Everything,
    /// Interfaces came, went or changed. Routes may have gone with them: for IPv4 the kernel does not say so.
    Links,
    /// Addresses came or went.
    Addresses,
    /// Routes, next hops or rules came, went or changed.
    Routes,
    /// A neighbour has another MAC address, or became usable or unusable.
    Neighbour {
        /// On which interface.
        ifindex: u32,
        /// Whose.
        address: IpAddr,
        /// What it is now; `None` if the kernel has forgotten it.
        neighbour: Option<Neighbour>,
    },
}

/// The kinds that are held off, in the order they are told; a kind's number is its place.
const KINDS: [HostEvent; 4] = [HostEvent::Everything, HostEvent::Links, HostEvent::Addresses, HostEvent::Routes];
const EVERYTHING: usize = 0;
const LINKS: usize = 1;
const ADDRESSES: usize = 2;
const ROUTES: usize = 3;

/// What reader and consumer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    cache: Cache,
    changed: [bool; KINDS.len()],
    neighbours: BTreeSet<Key>,
    /// When the next event of a kind may be told.
    not_before: [Option<Instant>; KINDS.len()],
}

/// What to tell the consumer.
#[derive(Debug, PartialEq)]
enum Next {
    Event(HostEvent),
    WaitUntil(Instant),
    Nothing,
}

impl Shared {
    /// Waits for a change. Cancelling it loses nothing. For one consumer.
    pub async fn next_event(&self) -> HostEvent {
        loop {
            let woken = self.wake.notified();
            // Not in the match, or the lock would be held while waiting.
            let next = self.lock().take(Instant::now());
            match next {
                Next::Event(event) => return event,
                Next::Nothing => woken.await,
                Next::WaitUntil(due) => tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// Runs a closure on the neighbours.
    pub fn with_cache<T>(&self, read: impl FnOnce(&Cache) -> T) -> T {
        read(&self.lock().cache)
    }

    /// Takes the neighbours from before the first event.
    pub fn fill(&self, all: Vec<(Key, Neighbour)>) {
        self.lock().cache.replace(all);
    }

    fn update(&self, update: impl FnOnce(&mut State)) {
        update(&mut self.lock());
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, now: Instant) -> Next {
        let mut wait = Next::Nothing;
        for (kind, event) in KINDS.into_iter().enumerate() {
            if !self.changed[kind] {
                continue;
            }
            match self.not_before[kind].filter(|due| *due > now) {
                None => {
                    self.changed[kind] = false;
                    self.not_before[kind] = Some(now + HOLD_OFF);
                    return Next::Event(event);
                }
                Some(due) => {
                    wait = match wait {
                        Next::WaitUntil(earlier) if earlier < due => wait,
                        _ => Next::WaitUntil(due),
                    };
                }
            }
        }
        match self.neighbours.pop_first() {
            Some((ifindex, address)) => {
                let neighbour = self.cache.get(&(ifindex, address));
                Next::Event(HostEvent::Neighbour { ifindex, address, neighbour })
            }
            None => wait,
        }
    }

    fn note_neighbours(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.neighbours.extend(keys);
        if self.neighbours.len() > MAX_NEIGHBOURS {
            self.neighbours.clear();
            self.changed[EVERYTHING] = true;
        }
    }

    /// Takes a datagram apart; returns false if it makes no sense.
    fn apply_datagram(&mut self, mut datagram: &[u8]) -> bool {
        while !datagram.is_empty() {
            let Some((kind, payload, rest)) = split_message(datagram) else { return false };
            if !self.apply_message(kind, payload) {
                return false;
            }
            datagram = rest;
        }
        true
    }

    /// By rtnetlink.h's number of the message; only of neighbours' the content matters.
    fn apply_message(&mut self, kind: u16, payload: &[u8]) -> bool {
        match kind {
            16 => self.changed[LINKS] = true,
            17 => {
                self.changed[LINKS] = true;
                // `ifi_index` of `struct ifinfomsg`.
                let Some(ifindex) = read_u32(payload, 4) else { return false };
                self.cache.forget_interface(ifindex);
            }
            20 | 21 => self.changed[ADDRESSES] = true,
            24 | 25 | 32 | 33 | 104 | 105 => self.changed[ROUTES] = true,
            28 | 29 => {
                let Ok(message) = NeighbourMessage::parse(payload) else { return false };
                if let Some((key, neighbour)) = neighbour::parse(&message)
                    && self.cache.apply(key, Some(neighbour).filter(|_| kind == 28))
                {
                    self.note_neighbours([key]);
                }
            }
            _ => {}
        }
        true
    }
}

/// Type and payload of the first message, and what follows it. `struct nlmsghdr` is length, type, flags, sequence and
/// port in 16 bytes; messages begin at multiples of 4.
fn split_message(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    const HEADER: usize = 4 + 2 + 2 + 4 + 4;
    let length = usize::try_from(read_u32(datagram, 0)?).ok()?;
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    let payload = datagram.get(HEADER..length)?;
    Some((kind, payload, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The task that keeps [`Shared`].
pub(super) struct Reader {
    socket: TokioSocket,
    shared: Arc<Shared>,
    handle: Handle,
    /// When the neighbours are to be read anew.
    resync: Option<Instant>,
}

impl Reader {
    /// Joins the groups in the calling thread's network namespace, with a buffer of so many bytes in the kernel.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(shared: Arc<Shared>, handle: Handle, buffer_bytes: usize) -> Result<Self> {
        let socket = open_socket(buffer_bytes).map_err(HostError::NetlinkSocket)?;
        Ok(Self { socket, shared, handle, resync: None })
    }

    /// Reads for ever.
    pub async fn run(mut self) {
        let mut buffer = Vec::with_capacity(MAX_DATAGRAM);
        loop {
            let resync = self.resync;
            let due = async {
                match resync {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                error = read_until_loss(&self.socket, &self.shared, &mut buffer) => self.handle_loss(&error).await,
                () = due => self.read_anew().await,
            }
        }
    }

    /// Something was lost, and this is how we know.
    async fn handle_loss(&mut self, error: &io::Error) {
        if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) {
            tracing::debug!("the kernel has more news than its buffer for us takes: everything is read anew");
        } else {
            tracing::warn!("lost news from the kernel, everything is read anew: {error}");
            // Should it fail for good, not as fast as it can.
            tokio::time::sleep(HOLD_OFF).await;
        }
        self.shared.update(|state| state.changed[EVERYTHING] = true);
        self.resync.get_or_insert(Instant::now() + HOLD_OFF);
    }

    async fn read_anew(&mut self) {
        match neighbour::read_all(&self.handle).await {
            Ok(all) => {
                self.resync = None;
                self.shared.update(|state| {
                    let changed = state.cache.replace(all);
                    state.note_neighbours(changed);
                });
            }
            Err(error) => {
                tracing::warn!("{error}, trying again");
                self.resync = Some(Instant::now() + HOLD_OFF);
            }
        }
    }
}

fn open_socket(buffer_bytes: usize) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // Without root the usual size has to do; more of a storm is then told as `Everything`.
    if setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &buffer_bytes).is_err() {
        setsockopt(socket.socket_ref(), sockopt::RcvBuf, &buffer_bytes)?;
    }
    // Group n is bit n - 1.
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Reads until something is lost, and returns how that is known. Cancelling it loses nothing. Every so often tokio has
/// it wait for its turn, so that a storm leaves the runtime to others.
async fn read_until_loss(socket: &TokioSocket, shared: &Shared, buffer: &mut Vec<u8>) -> io::Error {
    loop {
        buffer.clear();
        match socket.recv_from(buffer).await {
            // Port 0 is the kernel; nobody else has anything to tell us.
            Ok(from) if from.port_number() != 0 => {}
            Ok(_) => {
                let mut makes_sense = true;
                shared.update(|state| makes_sense = state.apply_datagram(buffer));
                if !makes_sense {
                    return io::Error::new(io::ErrorKind::InvalidData, "a message makes no sense");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &[0; 10], payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// RTM_NEWNEIGH of 10.0.0.1 on interface 3.
    fn neighbour(kind: u16, nud: u8, mac: u8) -> Vec<u8> {
        let header = [2, 0, 0, 0, 3, 0, 0, 0, nud, 0, 0, 1];
        message(kind, &[header.as_slice(), &[8, 0, 1, 0, 10, 0, 0, 1], &[10, 0, 2, 0, 2, 0, 0, 0, 0, mac]].concat())
    }

    fn drain(state: &mut State, now: Instant) -> Vec<HostEvent> {
        std::iter::from_fn(|| match state.take(now) {
            Next::Event(event) => Some(event),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn a_storm_is_few_events() {
        let mut state = State::default();
        let now = Instant::now();
        for _ in 0..10_000 {
            assert!(
                state.apply_datagram(&[message(24, &[0; 40]), message(25, &[0; 3]), message(16, &[0; 16])].concat())
            );
        }
        assert_eq!(drain(&mut state, now), [HostEvent::Links, HostEvent::Routes]);
        assert!(state.apply_datagram(&message(104, &[])));
        assert_eq!(state.take(now), Next::WaitUntil(now + HOLD_OFF));
        assert!(state.apply_datagram(&message(20, &[])));
        assert_eq!(drain(&mut state, now), [HostEvent::Addresses]);
        assert_eq!(drain(&mut state, now + HOLD_OFF), [HostEvent::Routes]);
        assert_eq!(state.take(now), Next::Nothing);
    }

    #[test]
    fn neighbours_come_with_their_last_state_and_once() {
        let mut state = State::default();
        let now = Instant::now();
        for (nud, mac) in [(1, 0), (2, 1), (4, 1), (2, 2), (2, 3)] {
            assert!(state.apply_datagram(&neighbour(28, nud, mac)));
        }
        let events = drain(&mut state, now);
        let [HostEvent::Neighbour { ifindex: 3, address, neighbour: Some(found) }] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((address.to_string().as_str(), found.mac), ("10.0.0.1", Some([2, 0, 0, 0, 0, 3])));
        assert!(state.apply_datagram(&neighbour(28, 4, 3)));
        assert_eq!(drain(&mut state, now), []);
        assert!(state.apply_datagram(&neighbour(29, 4, 3)));
        assert!(matches!(drain(&mut state, now)[..], [HostEvent::Neighbour { neighbour: None, .. }]));
        assert!(state.apply_datagram(&neighbour(28, 2, 3)));
        assert!(state.apply_datagram(&message(17, &[0, 0, 0, 0, 3, 0, 0, 0])));
        assert_eq!(state.cache.iter().count(), 0);
    }

    #[test]
    fn too_many_neighbours_are_everything() {
        let mut state = State::default();
        for number in 0..=u32::try_from(MAX_NEIGHBOURS).unwrap() {
            state.note_neighbours([(1, IpAddr::from(number.to_be_bytes()))]);
        }
        assert_eq!(drain(&mut state, Instant::now()), [HostEvent::Everything]);
    }

    #[test]
    fn nonsense_is_told() {
        let mut state = State::default();
        for bytes in
            [&[1, 2, 3][..], &[0; 16], &[255; 40], &message(24, &[0; 8])[..20], &message(28, &[1]), &message(17, &[])]
        {
            assert!(!state.apply_datagram(bytes), "{bytes:?}");
        }
        assert!(state.apply_datagram(&message(3, &[])) && state.apply_datagram(&[]));
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken() {
        let shared = Arc::new(Shared::default());
        let waiting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { (shared.next_event().await, shared.next_event().await) }
        });
        tokio::task::yield_now().await;
        shared.update(|state| state.changed[ROUTES] = true);
        tokio::task::yield_now().await;
        shared.update(|state| state.changed[ROUTES] = true);
        let events = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(events, (HostEvent::Routes, HostEvent::Routes));
    }
}
