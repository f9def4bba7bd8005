//! What flow logs are told of the flow table: entries as windows, interfaces as records name them. Used by the sweeper alone.

use super::given_up::GivenUp;
use super::list::{Clock, Key};
use crate::datapath::{Datapath, DatapathError, FlowTable, Seen};
use crate::flowlog::clock::Moment;
use crate::flowlog::feed::{Feed, Regroup};
use crate::flowlog::ledger::Counts;
use crate::flowlog::refused::{Refused, RefusedCount};
use crate::live::Live;
use crate::record::{Interface, Interfaces, Place, Tuple, Window};
use crate::status::Served;
use forwarder_ebpf::abi::{self, NextHop, RefusedKey, RoundTrips, Ticks, status};
use forwarder_ebpf::verdict::Drop;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// TCP flags by their bits (RFC 9293 §3.1).
const SYN: u8 = 2;
const FIN_SYN_RST: u8 = 7;
const ACK: u8 = 16;

/// The sweeper's notebook.
#[derive(Debug)]
pub struct Logger {
    feed: Feed,
    interfaces: Arc<Interfaces>,
    /// Epoch of the view and version of the identity that `interfaces` are of.
    known: Option<(u32, u64)>,
    /// Names of the rules in force.
    names: Arc<Vec<String>>,
}

impl Logger {
    /// With a feed.
    pub fn new(feed: Feed) -> Self {
        Self { feed, interfaces: Arc::default(), known: None, names: Arc::default() }
    }

    /// Other destinations with the next pass that sees every entry, which ends all windows.
    pub fn change(&mut self, regroup: Regroup) {
        self.feed.change(regroup);
    }

    /// Whether that has not been made yet.
    pub fn is_changing(&self) -> bool {
        self.feed.is_changing()
    }

    /// When a window ends next, from now.
    pub fn ends_in(&self) -> Option<Duration> {
        self.feed.ends_in()
    }

    /// A pass begins; with the last one all windows end.
    pub fn begin(&mut self, live: &Live, clock: Clock, last: bool) {
        let view = live.view();
        let now = (view.epoch, live.flow_logs().identity().version());
        if self.known != Some(now) {
            let served: Vec<_> =
                view.served.iter().map(|served| live.flow_logs().identity().name(interface(served))).collect();
            let interfaces = std::iter::once(Interface::default()).chain(served).collect::<Vec<_>>();
            let in_force = live.rules().names.clone();
            if self.interfaces.list != interfaces || !Arc::ptr_eq(&self.names, &in_force) {
                let rules = Arc::new(with_earlier(&in_force, &self.interfaces.rules));
                self.names = in_force;
                self.interfaces = Arc::new(Interfaces { list: interfaces, rules });
            }
            self.known = Some(now);
        }
        drop(view);
        self.feed.begin(clock.now, clock.per_second, self.interfaces.clone(), last);
    }

    /// An entry that lives.
    pub fn observe<K: Key>(&mut self, table: &FlowTable<K>, seen: &Seen<K>) {
        let interfaces = &self.interfaces;
        self.feed.observe(K::FAMILY, seen.index, &counts(seen), |now| describe(table, seen, interfaces, now));
    }

    /// An entry that is gone, with its last counters.
    pub fn end<K: Key>(&mut self, table: &FlowTable<K>, seen: &Seen<K>) {
        let interfaces = &self.interfaces;
        self.feed.end(K::FAMILY, seen.index, &counts(seen), |now| describe(table, seen, interfaces, now));
    }

    /// Before the slots of ended entries are freed.
    pub fn write(&mut self) {
        self.feed.write();
    }

    /// Packets that were refused since the last pass.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_refused(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let tables = &datapath.refused;
        tables.set_wanted(self.feed.is_wanted())?;
        let bank = tables.read()?;
        if !bank.v4.is_empty() || !bank.v6.is_empty() {
            // From here on they are only in this process.
            self.feed.mark();
            tables.remove(&bank)?;
            bank.v4.iter().for_each(|(key, refused)| self.refuse(key, refused));
            bank.v6.iter().for_each(|(key, refused)| self.refuse(key, refused));
        }
        self.feed.refused_uncounted(tables.take_lost()?);
        Ok(())
    }

    fn refuse<K: Key + RefusedKey>(&mut self, key: &K, refused: &abi::Refused) {
        let by = key.by();
        // A number that is no reason would be another version's.
        let Some(reason) = Drop::ALL.get(usize::from(by.reason)) else { return };
        let ingress = self.interfaces.number_of_slot(by.slot);
        let rule = refused.rule.load() as u16;
        let refused = RefusedCount {
            packets: refused.packets.load(),
            bytes: refused.bytes.load(),
            tcp_flags: refused.tcp_flags.load() as u8,
            first: refused.first.load(),
            last: refused.last.load(),
        };
        let what = Refused { tuple: tuple(key.ends()), protocol: key.protocol(), ingress, reason: *reason, rule };
        self.feed.refuse(&what, &refused);
    }

    /// Packets that the controller has dropped since the last pass: their next hop has no link-layer address.
    pub fn take_given_up(&mut self, live: &Live, clock: Clock) {
        let mut all = std::mem::take(&mut *live.given_up());
        if !self.feed.is_wanted() {
            return;
        }
        self.feed.refused_uncounted(all.lost());
        let ticks_of = |at: Instant| {
            let age = at.elapsed().as_millis() * u128::from(clock.per_second) / 1000;
            clock.now.wrapping_sub(age as Ticks)
        };
        for packet in &mut all {
            let ingress = self.interfaces.number_of(packet.ingress);
            let GivenUp { tuple, protocol, .. } = packet;
            let what = Refused { tuple, protocol, ingress, reason: Drop::NeighbourUnknown, rule: 0 };
            self.feed.refuse(&what, &packet.count(ticks_of));
        }
    }

    /// The pass is over. `whole`: it has seen every entry.
    pub fn finish(&mut self, whole: bool) {
        self.feed.finish(whole);
    }
}

/// The names in force, and where no rule has a number any more, the name of the one that had it: what a flow did before the
/// rules changed is still to be told.
fn with_earlier(in_force: &[String], earlier: &[String]) -> Vec<String> {
    let mut names = in_force.to_vec();
    names.resize(names.len().max(earlier.len()), String::new());
    for (name, earlier) in names.iter_mut().zip(earlier).filter(|(name, _)| name.is_empty()) {
        name.clone_from(earlier);
    }
    names
}

fn interface(served: &Served) -> Interface {
    Interface {
        name: served.name.clone(),
        ifindex: served.ifindex,
        slot: served.slot,
        place: match served.role {
            "inside" => Place::Inside,
            "outside" => Place::Outside,
            _ => Place::Both,
        },
        mac: served.mac,
        address4: served.addresses.0.map(IpAddr::from),
        address6: served.addresses.1.map(IpAddr::from),
        ..Interface::default()
    }
}

fn counts<K: Key>(Seen { entry, birth, .. }: &Seen<K>) -> Counts {
    let bits = entry.status.load();
    Counts {
        packets: entry.packets.load(),
        bytes: entry.bytes.load(),
        tcp_flags: logged(bits, bits >> status::FLAGS_SHIFT),
        again: logged(bits, bits >> status::AGAIN_SHIFT),
        made: birth.since.load(),
        last: entry.last_seen.load(),
    }
}

/// Flags as AWS counts them: FIN, SYN and RST, and ACK only with SYN, which is how a responder answers.
fn logged(bits: u32, seen: u32) -> u8 {
    let seen = seen as u8 & FIN_SYN_RST;
    let answer = seen & SYN != 0 && bits & status::ORIGINATOR == 0;
    if answer { seen | ACK } else { seen }
}

fn describe<K: Key>(table: &FlowTable<K>, seen: &Seen<K>, interfaces: &Interfaces, now: &Moment) -> Window {
    let Seen { key, entry, birth, .. } = seen;
    let bits = entry.status.load();
    let arrived = tuple(key.ends());
    let translated = bits & (status::SOURCE_NAT | status::DESTINATION_NAT) != 0;
    let slot = birth.ingress();
    let RoundTrips { originator_us, responder_us } = table.round_trips(key, entry).unwrap_or_default();
    let originator = bits & status::ORIGINATOR != 0;
    let (rtt_source_us, rtt_destination_us) =
        if originator { (originator_us, responder_us) } else { (responder_us, originator_us) };
    Window {
        arrived,
        left: if translated { tuple(key.translated(entry)) } else { arrived },
        ingress: slot.map_or(0, |slot| interfaces.number_of_slot(slot)),
        egress: interfaces.number_of(u32::from(NextHop::unpack(entry.next_hop.load()).ifindex)),
        protocol: key.protocol(),
        originator,
        rule: birth.rule.load(),
        begun_ms: now.unix_ms_of(birth.since.load()),
        rtt_source_us,
        rtt_destination_us,
        ..Window::default()
    }
}

fn tuple((source, destination): (SocketAddr, SocketAddr)) -> Tuple {
    Tuple {
        source: source.ip(),
        destination: destination.ip(),
        source_port: source.port(),
        destination_port: destination.port(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that nobody reads, and where it keeps its books.
    pub(in crate::flows) fn logger() -> (tempfile::TempDir, Logger) {
        let directory = tempfile::tempdir().expect("a directory");
        let feed = Feed::open(directory.path(), Vec::new(), Arc::default(), false).expect("files");
        (directory, Logger::new(feed))
    }

    #[test]
    fn flags_are_awss() {
        assert_eq!(logged(status::ORIGINATOR, 0x10), 0, "ACK alone");
        assert_eq!(logged(status::ORIGINATOR, 0x13), 3, "SYN, ACK, FIN");
        assert_eq!(logged(0, 0x13), 19, "SYN-ACK, FIN");
        assert_eq!(logged(0, 0x14), 4, "RST-ACK");
        assert_eq!(logged(0, 0xf8), 0, "what else stands there");
    }
}
