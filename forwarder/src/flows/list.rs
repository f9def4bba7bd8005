//! Connections on request: shown, counted, removed. Reads the tables batch by batch, and the answering direction of each
//! connection that is meant by its key, so memory does not grow with the table.

use super::filter::{Ends, Filter, protocol_name};
use crate::datapath::{Datapath, DatapathError, FlowTable, Seen};
use forwarder_ebpf::abi::{FlowEntry, FlowKey, FlowKey4, FlowKey6, RoundTrips, Ticks, status};
use forwarder_ebpf::conntrack::State;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// One connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// IP protocol, by name where it has one.
    pub protocol: String,
    /// As its originator sends it.
    pub original: Tuple,
    /// As it leaves; equal to `original` when nothing is translated.
    pub translated: Tuple,
    /// How far it is.
    pub state: String,
    /// From the originator.
    pub originator: Direction,
    /// To the originator.
    pub responder: Direction,
    /// Since it began, seconds.
    pub age_seconds: f64,
    /// Since its last packet in either direction, seconds.
    pub idle_seconds: f64,
    /// Round trip between here and the originator in the TCP handshake, microseconds; left out where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_originator_us: Option<u32>,
    /// The same between here and the responder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_responder_us: Option<u32>,
}

/// Both ends; the port is left out where the protocol has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Who sends.
    pub source: String,
    /// To whom.
    pub destination: String,
}

/// One direction's counters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Direction {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of IP packet forwarded.
    pub bytes: u64,
    /// OR of the TCP flags FIN (1), SYN (2), RST (4) and ACK (16) that were seen at a change of state, by all connections that
    /// had the tuple one after the other, as the packets are.
    pub tcp_flags: u8,
}

/// A key of either family, in the addresses of the standard library.
pub trait Key: FlowKey + crate::datapath::Key {
    /// Source and destination of the key.
    fn ends(&self) -> (SocketAddr, SocketAddr);
    /// Source and destination that packets of `entry` leave with.
    fn translated(&self, entry: &FlowEntry) -> (SocketAddr, SocketAddr);
}

impl Key for FlowKey4 {
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (end(self.source, self.source_port), end(self.destination, self.destination_port))
    }

    fn translated(&self, entry: &FlowEntry) -> (SocketAddr, SocketAddr) {
        (end(entry.source(), entry.source_port()), end(entry.destination(), entry.destination_port()))
    }
}

impl Key for FlowKey6 {
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (end(self.source, self.source_port), end(self.destination, self.destination_port))
    }

    fn translated(&self, _: &FlowEntry) -> (SocketAddr, SocketAddr) {
        self.ends()
    }
}

fn end(address: impl Into<IpAddr>, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be_bytes(port))
}

/// The clock that entries are stamped by.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: Ticks,
    /// Ticks in one second (HZ).
    pub per_second: u32,
}

impl Clock {
    /// Ticks since a stamp. A stamp that is a little ahead, of a packet this moment, counts as now.
    pub fn since(self, stamp: Ticks) -> Ticks {
        let elapsed = self.now.wrapping_sub(stamp);
        if elapsed > Ticks::MAX / 2 { 0 } else { elapsed }
    }

    fn seconds_since(self, stamp: Ticks) -> f64 {
        f64::from(self.since(stamp)) / f64::from(self.per_second)
    }
}

/// Calls `show` for every connection that is meant. What comes or goes meanwhile may be missed, nothing is shown twice.
///
/// # Errors
/// When the kernel refuses.
pub fn visit(
    datapath: &Datapath,
    filter: &Filter,
    clock: Clock,
    mut show: impl FnMut(Connection),
) -> Result<(), DatapathError> {
    visit_table(&datapath.flows4, filter, |seen| show(connection(&datapath.flows4, seen, clock)))?;
    visit_table(&datapath.flows6, filter, |seen| show(connection(&datapath.flows6, seen, clock)))
}

/// How many connections are meant.
///
/// # Errors
/// When the kernel refuses.
pub fn count(datapath: &Datapath, filter: &Filter) -> Result<u64, DatapathError> {
    let mut count = 0;
    visit_table(&datapath.flows4, filter, |_| count += 1)?;
    visit_table(&datapath.flows6, filter, |_| count += 1)?;
    Ok(count)
}

/// Removes the connections that are meant; returns how many there were. Their next packet is a new flow's first.
///
/// # Errors
/// When the kernel refuses.
pub fn flush(datapath: &Datapath, filter: &Filter) -> Result<u64, DatapathError> {
    Ok(flush_table(&datapath.flows4, filter)? + flush_table(&datapath.flows6, filter)?)
}

fn flush_table<K: Key>(table: &FlowTable<K>, filter: &Filter) -> Result<u64, DatapathError> {
    let mut removal = Removal::new(table);
    let (mut removed, mut failed) = (0, None);
    visit_table(table, filter, |seen| match removal.add(&seen.key, &seen.entry) {
        Ok(()) => removed += 1,
        Err(error) => failed = Some(error),
    })?;
    removal.finish()?;
    failed.map_or(Ok(removed), Err)
}

/// Connections that are being removed, many at a time. The originator's entry always goes first: no packet shall leave
/// whose answer finds nothing.
pub struct Removal<'t, K> {
    table: &'t FlowTable<K>,
    keys: Vec<K>,
}

impl<'t, K: Key> Removal<'t, K> {
    /// Keys that are removed at once.
    const MANY: usize = 4096;

    /// Of connections in this table.
    pub fn new(table: &'t FlowTable<K>) -> Self {
        Self { table, keys: Vec::new() }
    }

    /// Removes the connection with this originator's entry, now or a little later.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&mut self, key: &K, entry: &FlowEntry) -> Result<(), DatapathError> {
        self.keys.extend([*key, key.partner(entry)]);
        if self.keys.len() < Self::MANY { Ok(()) } else { self.finish() }
    }

    /// Removes an entry alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_alone(&mut self, key: &K) -> Result<(), DatapathError> {
        self.keys.push(*key);
        if self.keys.len() < Self::MANY { Ok(()) } else { self.finish() }
    }

    /// Removes what has been added and is still there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn finish(&mut self) -> Result<(), DatapathError> {
        self.table.remove(&self.keys)?;
        self.keys.clear();
        Ok(())
    }
}

fn visit_table<K: Key>(
    table: &FlowTable<K>,
    filter: &Filter,
    mut found: impl FnMut(&Seen<K>),
) -> Result<(), DatapathError> {
    table.visit(|seen| {
        if is_meant(filter, seen) {
            found(seen);
        }
        Ok(())
    })
}

/// Whether it is the originator's entry of a connection that is meant.
pub(super) fn is_meant<K: Key>(filter: &Filter, Seen { key, entry, .. }: &Seen<K>) -> bool {
    let bits = entry.status.load();
    if bits & status::ORIGINATOR == 0 {
        return false;
    }
    let ((source, destination), translated) = (key.ends(), key.translated(entry));
    let all = [source, destination, translated.0, translated.1];
    let ends = Ends { addresses: all.map(|end| end.ip()), ports: all.map(|end| end.port()) };
    filter.is_everything() || filter.matches(key.protocol(), State::of(key.protocol(), bits), &ends)
}

fn connection<K: Key>(table: &FlowTable<K>, seen: &Seen<K>, clock: Clock) -> Connection {
    let Seen { key, entry, birth, .. } = seen;
    // Gone in this moment: what is known of the connection is shown all the same.
    let answer = table.read(&key.partner(entry));
    let idle = clock.seconds_since(entry.last_seen.load());
    let answered = answer.as_ref().map_or(f64::MAX, |answer| clock.seconds_since(answer.last_seen.load()));
    let RoundTrips { originator_us, responder_us } = table.round_trips(key, entry).unwrap_or_default();
    let known = |micros| Some(micros).filter(|micros| *micros != 0);
    Connection {
        protocol: protocol_name(key.protocol()),
        original: tuple(key.ends()),
        translated: tuple(key.translated(entry)),
        state: State::of(key.protocol(), entry.status.load()).name().to_owned(),
        originator: direction(entry),
        responder: answer.as_ref().map(direction).unwrap_or_default(),
        age_seconds: clock.seconds_since(birth.since.load()),
        idle_seconds: idle.min(answered),
        rtt_originator_us: known(originator_us),
        rtt_responder_us: known(responder_us),
    }
}

pub(super) fn tuple((source, destination): (SocketAddr, SocketAddr)) -> Tuple {
    let show = |end: SocketAddr| if end.port() == 0 { end.ip().to_string() } else { end.to_string() };
    Tuple { source: show(source), destination: show(destination) }
}

fn direction(entry: &FlowEntry) -> Direction {
    Direction {
        packets: entry.packets.load(),
        bytes: entry.bytes.load(),
        tcp_flags: ((entry.status.load() & status::FLAGS) >> status::FLAGS_SHIFT) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_from_the_next_tick_is_now() {
        let clock = Clock { now: 5, per_second: 250 };
        assert_eq!((clock.since(5), clock.since(6), clock.since(3)), (0, 0, 2));
        assert_eq!(clock.since(Ticks::MAX), 6, "jiffies wrap");
    }

    #[test]
    fn an_end_without_port_is_an_address() {
        let tuple = tuple((end([10, 0, 0, 1], [0x9c, 0x40]), end([10, 0, 0, 2], [0, 0])));
        assert_eq!((tuple.source.as_str(), tuple.destination.as_str()), ("10.0.0.1:40000", "10.0.0.2"));
    }
}
