//! Connection state: what a packet changes in both entries of its connection, and how long a state may stay idle.
//!
//! State is a set of bits that only ever get added (`abi::status`), equal in both entries, except when a new connection
//! takes over the tuple of a closing one, and when who is said to have reset a connection goes on with it. Which flags were seen
//! is each entry's own, and for flow logs; the controller takes away what it has told. An entry's `watch` byte names the TCP flags
//! that would add something; all other packets never come here. RFC 6146 §3.5.2 and RFC 7857 §2 for TCP; AWS's ENI timers for
//! the rest.

use crate::abi::{Birth, FlowEntry, FlowKey, Ticks, status};
use crate::sequence;
use crate::tables::FlowTable;
use crate::wire::protocol;
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};

/// What the flow table may forget, and after which idle time. The names are the configuration's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// TCP that is opening or closing.
    TcpTransitory,
    /// TCP after its handshake, half-closed included.
    TcpEstablished,
    /// UDP: one-way, or a single request and response.
    Udp,
    /// UDP with more than one request and response.
    UdpStream,
    /// ICMP and ICMPv6 echo.
    Icmp,
    /// All other protocols.
    Other,
}

/// A connection's state, for people and for reclaiming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No answer yet.
    Unreplied,
    /// TCP: SYN and SYN-ACK seen, the last ACK not.
    Opening,
    /// Answered; TCP: handshake complete.
    Established,
    /// TCP: one side has sent FIN.
    HalfClosed,
    /// TCP: both have sent FIN, or one RST.
    Closing,
}

impl State {
    /// The state that the bits say.
    pub const fn of(protocol: u8, bits: u32) -> Self {
        let fins = bits & (status::FIN_ORIGINATOR | status::FIN_RESPONDER);
        if bits & status::RESET != 0 || fins == status::FIN_ORIGINATOR | status::FIN_RESPONDER {
            Self::Closing
        } else if fins != 0 {
            Self::HalfClosed
        } else if bits & status::REPLIED == 0 {
            Self::Unreplied
        } else if protocol != protocol::TCP || bits & status::ESTABLISHED != 0 {
            Self::Established
        } else {
            Self::Opening
        }
    }

    /// The name in JSON, metrics and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreplied => "unreplied",
            Self::Opening => "opening",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closing => "closing",
        }
    }

    /// All of them.
    pub const ALL: [Self; 5] = [Self::Unreplied, Self::Opening, Self::Established, Self::HalfClosed, Self::Closing];
}

impl Class {
    /// The class of a connection with these bits.
    pub const fn of(protocol: u8, bits: u32) -> Self {
        match protocol {
            protocol::TCP => match State::of(protocol, bits) {
                State::Established => Self::TcpEstablished,
                State::HalfClosed if bits & status::ESTABLISHED != 0 => Self::TcpEstablished,
                _ => Self::TcpTransitory,
            },
            protocol::UDP if bits & status::STREAM != 0 => Self::UdpStream,
            protocol::UDP => Self::Udp,
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

/// `status` of a new connection's two entries, the originator's first. `None`: such a packet does not begin one.
#[inline(always)]
pub(crate) fn begin(protocol: u8, signal: u8, loose: bool) -> Option<(u32, u32)> {
    if protocol != protocol::TCP {
        return Some((status::ORIGINATOR, u32::from(status::SIGNAL)));
    }
    let watch = u32::from(SYN | FIN | RST);
    let seen = u32::from(signal) << status::FLAGS_SHIFT;
    match signal {
        SYN => Some((status::ORIGINATOR | watch | u32::from(ACK) | seen, watch)),
        ACK if loose => {
            Some((status::ORIGINATOR | status::LOOSE | watch | seen, status::LOOSE | watch | u32::from(ACK)))
        }
        _ => None,
    }
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that matters to this packet.
    Kept,
    /// The other entry is gone: the connection is being removed.
    Orphaned,
}

/// Notes in both entries what a watched packet says.
#[inline(always)]
pub(crate) fn note<K: FlowKey, T: FlowTable<K>>(
    tables: &T,
    key: &K,
    entry: &FlowEntry,
    signal: u8,
    now: Ticks,
) -> Change {
    let bits = entry.status.load();
    if u32::from(signal) & bits & status::WATCH == 0 {
        return Change::Kept;
    }
    let Some(partner) = tables.flow(&key.partner(entry)) else { return Change::Orphaned };
    if key.protocol() != protocol::TCP {
        note_other(key.protocol(), entry, partner);
        return Change::Kept;
    }
    let reopens = is_reopening(signal, bits);
    if reopens && let Some(birth) = tables.birth(key) {
        birth.since.store(now);
    }
    if (reopens || is_said_to_be_new(signal, bits))
        && let Some(birth) = tables.birth(&key.partner(entry))
    {
        if reopens {
            birth.since.store(now);
        }
        birth.forget_place();
    }
    if reopens {
        reopen(entry, partner);
    } else {
        note_tcp(entry, partner, signal);
    }
    Change::Kept
}

/// Whether one end begins a connection which to us is open: it has lost it, or both have, and the tuple is used again. Then the
/// other end may stand anywhere, and its resets are believed until it is placed again. Not the sender's own: whoever invents
/// resets could send this first.
#[inline(always)]
fn is_said_to_be_new(signal: u8, bits: u32) -> bool {
    signal & (SYN | RST) == SYN && is_established(bits)
}

/// Of TCP: the handshake is over, and nobody has reset it.
#[inline(always)]
const fn is_established(bits: u32) -> bool {
    bits & (status::ESTABLISHED | status::RESET) == status::ESTABLISHED
}

#[inline(always)]
fn note_other(protocol: u8, entry: &FlowEntry, partner: &FlowEntry) {
    let add = if entry.status.load() & status::ORIGINATOR != 0 { status::STREAM } else { status::REPLIED };
    if protocol == protocol::UDP && add == status::REPLIED {
        // The next request makes it a stream.
        partner.status.or(u32::from(status::SIGNAL));
    }
    entry.status.or(add);
    partner.status.or(add);
    entry.status.and(!u32::from(status::SIGNAL));
}

#[inline(always)]
fn note_tcp(entry: &FlowEntry, partner: &FlowEntry, signal: u8) {
    let bits = entry.status.load();
    let originator = bits & status::ORIGINATOR != 0;
    let mut add = 0;
    if signal & RST != 0 {
        add |= status::RESET;
        // What its sender says after that will be watched.
        entry.status.or(u32::from(ACK) | status::RESET_HERE);
    } else if is_taken_back(bits, signal) {
        entry.status.and(!status::RESET_HERE);
        // Unless the other end has reset it as well.
        if partner.status.load() & status::RESET_HERE == 0 {
            entry.status.and(!status::RESET);
            partner.status.and(!status::RESET);
        }
        if !originator || bits & status::ESTABLISHED != 0 {
            entry.status.and(!u32::from(ACK));
        }
    }
    if signal & FIN != 0 {
        add |= if originator { status::FIN_ORIGINATOR } else { status::FIN_RESPONDER };
    }
    if signal & SYN != 0 && !originator {
        add |= status::REPLIED;
    }
    if signal & ACK != 0 && signal & SYN == 0 && !originator && bits & status::LOOSE != 0 {
        add |= status::REPLIED | status::ESTABLISHED;
        entry.status.and(!u32::from(ACK));
    }
    if signal & ACK != 0 && signal & RST == 0 && originator && bits & status::REPLIED != 0 {
        add |= status::ESTABLISHED;
        entry.status.and(!u32::from(ACK));
    }
    if is_placing_again(entry, signal) {
        entry.status.and(!u32::from(ACK));
    }
    entry.status.or(add | seen(bits, signal));
    partner.status.or(add);
}

/// What to note of a packet's flags in an entry with these bits: flow logs tell each window's.
#[inline(always)]
fn seen(bits: u32, signal: u8) -> u32 {
    let again = bits >> status::FLAGS_SHIFT & u32::from(signal) & u32::from(FIN | SYN | RST);
    u32::from(signal) << status::FLAGS_SHIFT | again << status::AGAIN_SHIFT
}

/// Whether a packet shows that the reset before it was not of its sender, who goes on with the connection (RFC 6146
/// §3.5.2.2, state TRANS; RFC 7857 §2.2). What the other end says shows nothing: it may have been on its way.
#[inline(always)]
fn is_taken_back(bits: u32, signal: u8) -> bool {
    let by_this_end = status::RESET | status::RESET_HERE;
    bits & by_this_end == by_this_end && signal & (RST | SYN | ACK) == ACK
}

/// Whether this TCP packet says where its direction stands in the sequence space: the first one does, and each SYN until
/// there is a connection.
#[inline(always)]
pub(crate) fn is_placing(birth: &Birth, entry: &FlowEntry, signal: u8) -> bool {
    let is_open = matches!(State::of(protocol::TCP, entry.status.load()), State::Established | State::HalfClosed);
    signal & RST == 0 && (!birth.is_placed() || (signal & SYN != 0 && !is_open))
}

/// Whether the direction has to be asked to look where it stands in the sequence space: it has moved far since it last did, and
/// has not been asked yet.
pub fn is_to_be_placed(protocol: u8, birth: &Birth, entry: &FlowEntry) -> bool {
    let bits = entry.status.load();
    let is_open = protocol == protocol::TCP && is_established(bits);
    is_open && bits & u32::from(ACK) == 0 && sequence::is_due(birth, entry)
}

/// Whether the entry was asked to look where its direction stands in the sequence space, and this packet can say it. An `ACK`
/// is watched in an open connection for no other reason.
#[inline(always)]
pub(crate) fn is_placing_again(entry: &FlowEntry, signal: u8) -> bool {
    let bits = entry.status.load();
    is_established(bits) && signal & (SYN | RST | ACK) == ACK && bits & u32::from(ACK) != 0
}

/// Whether this packet would turn a closing connection round: a SYN from the responder, which is the first packet of a
/// connection that enters by the responder's side.
#[inline(always)]
pub(crate) fn is_turned(protocol: u8, entry: &FlowEntry, signal: u8) -> bool {
    let bits = entry.status.load();
    protocol == protocol::TCP && bits & status::ORIGINATOR == 0 && is_reopening(signal, bits)
}

/// Whether this TCP packet begins a closing connection anew.
#[inline(always)]
pub(crate) fn is_reopening(signal: u8, bits: u32) -> bool {
    signal & (SYN | ACK | RST) == SYN && State::of(protocol::TCP, bits) == State::Closing
}

/// A SYN on a closing connection begins a new one on the same tuple and the same translation. The counters go on, and so do the
/// flags: they belong to the tuple, as in a flow log record.
#[inline(always)]
fn reopen(entry: &FlowEntry, partner: &FlowEntry) {
    let bits = entry.status.load();
    let originator = bits & status::ORIGINATOR != 0;
    let forget = status::WATCH | status::RESET_HERE | status::SHARED;
    let watch = u32::from(SYN | FIN | RST);
    let (own, other) = if originator { (watch | u32::from(ACK), watch) } else { (watch, watch | u32::from(ACK)) };
    // Asked by the responder: it has spoken, so the connection counts as answered when the originator acknowledges.
    let shared = if originator { 0 } else { status::REPLIED };
    entry.status.and(!forget);
    partner.status.and(!forget);
    entry.status.or(own | seen(bits, SYN) | shared);
    partner.status.or(other | shared);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{FlowKey4, SharedU32, Side};
    use crate::flow_table::Slots;
    use crate::sim::Sim;
    use State::{Closing, Established, HalfClosed, Opening, Unreplied};

    /// A connection in its table, and who says what in it.
    struct Dialogue {
        sim: Sim,
        key: FlowKey4,
        now: Ticks,
    }

    impl Dialogue {
        fn begin(protocol: u8, signal: u8, loose: bool) -> Self {
            let (one, other) = (Side::Inside as u8, Side::Outside as u8);
            let key = FlowKey4 { source: [1; 4], destination: [2; 4], protocol, side: one, ..FlowKey4::default() };
            let (own, partners) = super::begin(protocol, signal, loose).expect("such a packet begins a connection");
            let sim = Sim::new();
            let answer = key.reversed(other);
            for (key, bits, partner_side) in [(key, own, other), (answer, partners, one)] {
                let status = SharedU32::new(bits | u32::from(partner_side) << status::PARTNER_SHIFT);
                let entry = FlowEntry { status, ..FlowEntry::default() };
                entry.leave_as(&key);
                sim.flows4.insert(&key, &entry, &Birth::default()).expect("there is room");
            }
            Self { sim, key, now: 0 }
        }

        /// The originator sends.
        fn says(mut self, signal: u8, state: State) -> Self {
            self.send(self.key, signal, state)
        }

        /// The responder sends.
        fn hears(mut self, signal: u8, state: State) -> Self {
            self.send(self.key.reversed(Side::Outside as u8), signal, state)
        }

        fn send(&mut self, key: FlowKey4, signal: u8, state: State) -> Self {
            self.now += 1;
            let entry = self.sim.flows4.find(&key).expect("the connection is there");
            assert_eq!(note(&self.sim, &key, entry, signal, self.now), Change::Kept);
            let (own, partners) = (self.bits(key), self.bits(key.partner(entry)));
            assert_eq!(own & status::SHARED, partners & status::SHARED, "after {signal:#x}");
            assert_eq!(State::of(key.protocol, own), state, "after {signal:#x}");
            Self { sim: std::mem::take(&mut self.sim), ..*self }
        }

        fn bits(&self, key: FlowKey4) -> u32 {
            self.sim.flows4.find(&key).expect("the connection is there").status.load()
        }

        fn class(&self) -> Class {
            Class::of(self.key.protocol, self.bits(self.key))
        }
    }

    fn tcp() -> Dialogue {
        Dialogue::begin(protocol::TCP, SYN, false)
    }

    fn open() -> Dialogue {
        tcp().hears(SYN | ACK, Opening).says(ACK, Established)
    }

    #[test]
    fn a_connection_lives_from_syn_to_fin() {
        assert_eq!(tcp().class(), Class::TcpTransitory);
        assert_eq!(open().class(), Class::TcpEstablished);
        let closed =
            open().says(FIN | ACK, HalfClosed).hears(ACK, HalfClosed).hears(FIN | ACK, Closing).says(ACK, Closing);
        assert_eq!(closed.class(), Class::TcpTransitory);
        assert_eq!((closed.bits(closed.key) & status::FLAGS) >> status::FLAGS_SHIFT, u32::from(SYN | FIN | ACK));
    }

    #[test]
    fn flags_that_come_again_are_told_from_those_that_came_before() {
        let flags = |dialogue: &Dialogue| {
            let bits = dialogue.bits(dialogue.key);
            ((bits & status::FLAGS) >> status::FLAGS_SHIFT, (bits & status::AGAIN) >> status::AGAIN_SHIFT)
        };
        let (syn, fin, rst, ack) = (u32::from(SYN), u32::from(FIN), u32::from(RST), u32::from(ACK));
        let dialogue = tcp();
        assert_eq!(flags(&dialogue), (syn, 0));
        let dialogue = dialogue.says(SYN, Unreplied);
        assert_eq!(flags(&dialogue), (syn, syn));
        let index = (0..).find(|index| dialogue.sim.flows4.slot(*index).is_some_and(|slot| dialogue.key.is(&slot.key)));
        let forget = |flag: u32| {
            let bits = [index.expect("the connection is there"), flag << status::AGAIN_SHIFT];
            assert!(crate::flow_table::forget_again(&dialogue.sim.flows4, bits));
        };
        forget(fin);
        assert_eq!(flags(&dialogue), (syn, syn), "another flag than those that were told");
        forget(syn);
        let dialogue = dialogue.hears(SYN | ACK, Opening).hears(SYN | ACK, Opening).says(ACK, Established);
        assert_eq!(flags(&dialogue), (syn | ack, 0), "what the other end repeats is its own");
        let dialogue = dialogue.says(RST | ACK, Closing).says(SYN, Unreplied);
        assert_eq!(flags(&dialogue), (syn | ack | rst, syn), "another connection on the same tuple");
        let dialogue = dialogue.says(FIN | ACK, HalfClosed).says(FIN | RST, Closing);
        assert_eq!(flags(&dialogue), (syn | ack | rst | fin, syn | rst | fin));
    }

    #[test]
    fn half_closed_may_be_idle_as_long_as_established() {
        assert_eq!(open().hears(FIN | ACK, HalfClosed).class(), Class::TcpEstablished);
        assert_eq!(tcp().says(FIN | ACK, HalfClosed).class(), Class::TcpTransitory);
    }

    #[test]
    fn a_reset_closes_from_either_end_at_any_time() {
        tcp().hears(RST | ACK, Closing);
        open().says(RST, Closing);
        open().hears(RST, Closing).hears(FIN, Closing);
    }

    #[test]
    fn who_goes_on_after_its_reset_has_not_sent_it() {
        open().hears(RST, Closing).says(ACK, Closing).hears(ACK, Established).says(ACK, Established);
        open().says(RST | ACK, Closing).hears(ACK, Closing).says(ACK, Established).says(RST, Closing);
        open().hears(RST, Closing).hears(FIN | ACK, HalfClosed).says(FIN | ACK, Closing).hears(ACK, Closing);
        tcp().hears(RST, Closing).hears(SYN | ACK, Closing).says(ACK, Closing).hears(ACK, Established);
        open().says(RST, Closing).says(ACK, Established).hears(RST, Closing).says(ACK, Closing);
        let both = open().says(RST, Closing).hears(RST, Closing).says(ACK, Closing);
        both.hears(ACK, Established).says(RST, Closing).hears(ACK, Closing).says(ACK, Established);
        let again = open().hears(RST, Closing).hears(ACK, Established);
        assert_eq!(again.bits(again.key.reversed(Side::Outside as u8)) & status::WATCH, u32::from(SYN | FIN | RST));
    }

    #[test]
    fn only_the_originators_ack_of_an_answer_completes_the_handshake() {
        tcp().says(ACK, Unreplied).hears(SYN | ACK, Opening).hears(ACK, Opening).says(ACK, Established);
        tcp().hears(SYN, Opening).says(SYN | ACK, Established);
        tcp().hears(ACK, Unreplied);
    }

    #[test]
    fn a_syn_reopens_what_is_closing_and_nothing_else() {
        let again = open().says(RST, Closing).says(SYN, Unreplied);
        let birth = again.sim.flows4.birth(&again.key).expect("still there");
        assert_eq!(birth.since.load(), again.now);
        again.hears(SYN | ACK, Opening).says(ACK, Established);
        open().says(SYN, Established);
        open().says(FIN, HalfClosed).says(SYN, HalfClosed);
        open().says(RST, Closing).says(SYN | ACK, Closing);
    }

    #[test]
    fn who_begins_again_on_an_open_tuple_makes_the_other_ends_place_unknown() {
        let dialogue = open();
        let keys = [dialogue.key, dialogue.key.reversed(Side::Outside as u8)];
        let births = |dialogue: &Dialogue| {
            keys.map(|key| dialogue.sim.flows4.birth(&key).expect("the connection is there").clone())
        };
        for key in keys {
            dialogue.sim.flows4.birth(&key).expect("the connection is there").set_place(7);
        }
        let placed = |dialogue: &Dialogue| births(dialogue).map(|birth| birth.is_placed());
        let dialogue = dialogue.says(SYN, Established);
        assert_eq!(placed(&dialogue), [true, false]);
        let dialogue = dialogue.hears(SYN | ACK, Established);
        assert_eq!(placed(&dialogue), [false, false], "a SYN-ACK says so of the originator");
    }

    #[test]
    fn what_is_picked_up_is_established_by_the_first_answer() {
        let loose = Dialogue::begin(protocol::TCP, ACK, true).says(ACK, Unreplied).hears(ACK, Established);
        assert_eq!(loose.class(), Class::TcpEstablished);
        assert_eq!(begin(protocol::TCP, ACK, false), None);
        assert_eq!(begin(protocol::TCP, FIN | ACK, true), None);
    }

    #[test]
    fn established_traffic_is_not_watched_any_more() {
        let dialogue = open();
        for key in [dialogue.key, dialogue.key.reversed(Side::Outside as u8)] {
            assert_eq!(dialogue.bits(key) & status::WATCH, u32::from(SYN | FIN | RST));
        }
    }

    #[test]
    fn an_open_direction_looks_once_where_it_stands_when_it_is_asked() {
        let dialogue = open();
        for key in [dialogue.key, dialogue.key.reversed(Side::Outside as u8)] {
            let entry = dialogue.sim.flows4.find(&key).expect("the connection is there");
            assert!(!is_placing_again(entry, ACK) && !is_to_be_placed(protocol::UDP, &Birth::default(), entry));
            entry.packets.add(1);
            assert!(is_to_be_placed(protocol::TCP, &Birth::default(), entry), "it has a packet and no place");
            entry.status.or(u32::from(ACK));
            assert!(!is_to_be_placed(protocol::TCP, &Birth::default(), entry), "it is asked already");
            assert!(is_placing_again(entry, ACK) && !is_placing_again(entry, RST | ACK));
            note(&dialogue.sim, &key, entry, ACK, 9);
            assert!(!is_placing_again(entry, ACK));
        }
        let reset = open().hears(RST, Closing);
        let entry = reset.sim.flows4.find(&reset.key.reversed(Side::Outside as u8)).expect("the connection is there");
        assert!(!is_placing_again(entry, ACK), "what is watched after a reset is the sender of it");
    }

    #[test]
    fn udp_is_a_stream_once_the_originator_speaks_again() {
        const ANY: u8 = status::SIGNAL;
        let once = Dialogue::begin(protocol::UDP, ANY, false).says(ANY, Unreplied).hears(ANY, Established);
        assert_eq!(once.class(), Class::Udp);
        let stream = once.hears(ANY, Established).says(ANY, Established);
        assert_eq!((stream.class(), stream.bits(stream.key) & status::WATCH), (Class::UdpStream, 0));
        let ping = Dialogue::begin(protocol::ICMP, ANY, false).hears(ANY, Established).says(ANY, Established);
        assert_eq!(ping.class(), Class::Icmp);
        assert_eq!(Class::of(50, 0), Class::Other);
    }

    #[test]
    fn without_its_partner_a_watched_packet_orphans_the_entry() {
        let dialogue = tcp();
        let entry = dialogue.sim.flows4.find(&dialogue.key).expect("the connection is there");
        dialogue.sim.flows4.remove(&dialogue.key.partner(entry));
        assert_eq!(note(&dialogue.sim, &dialogue.key, entry, ACK, 1), Change::Orphaned);
        assert_eq!(note(&dialogue.sim, &dialogue.key, entry, 0, 1), Change::Kept);
    }
}
