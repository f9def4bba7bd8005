//! What a case is run through: the sim here, the loaded BPF programs in `kernel`. And the judge of what came of it.

use crate::case::{Case, Change, Step};
use crate::world::{Port, World};
use forwarder_ebpf::abi::firewall::RuleCounter;
use forwarder_ebpf::abi::{Counter, FlowEntry, FlowKey, FlowKey4, FlowKey6, MAX_IFACES, OUTCOMES, RoundTrips, status};
use forwarder_ebpf::abi::{Ticks, counter_index};
use forwarder_ebpf::conntrack::State;
use forwarder_ebpf::verdict::{Pass, Verdict};
use forwarder_kit::packet::{describe, verify_checksums};
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

/// Something that runs frames.
pub trait Body {
    /// Begins anew: no flows, no counts, this world.
    fn reset(&mut self, world: &World);
    /// Changes something.
    fn change(&mut self, change: &Change);
    /// Lets time go by.
    fn wait(&mut self, ticks: Ticks);
    /// Runs a frame.
    fn send(&mut self, ingress: u32, frame: &[u8]) -> Sent;
    /// All counters.
    fn counters(&self) -> Vec<Counter>;
    /// What the rules have met, by counter, up to `count`.
    fn rule_hits(&self, count: usize) -> Vec<Hits>;
    /// All flow entries, in the order of their keys.
    fn flows(&self) -> Flows;
    /// The frames that wait for a neighbour: ingress, egress, frame.
    fn take_held(&mut self) -> Vec<(u32, u32, Vec<u8>)>;
}

/// What a rule has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Packets that begin a flow, or become none.
    pub packets: u64,
    /// Their bytes: IP total length.
    pub bytes: u64,
}

impl From<&RuleCounter> for Hits {
    fn from(counter: &RuleCounter) -> Self {
        Self { packets: counter.hits, bytes: counter.bytes }
    }
}

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel gets it.
    Pass,
    /// It ends here.
    Drop,
    /// It leaves by another interface, or by the same.
    Redirect,
}

impl From<Verdict> for Action {
    /// As `bpf/main.rs` does it.
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Forward(_) | Verdict::Answered(_) => Self::Redirect,
            Verdict::Pass(Pass::Held) | Verdict::Drop(_) | Verdict::Next(_) => Self::Drop,
            Verdict::Pass(_) => Self::Pass,
        }
    }
}

/// What came of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What was done with it.
    pub action: Action,
    /// What it was then.
    pub frame: Vec<u8>,
}

/// All flow entries.
#[derive(Debug, Default)]
pub struct Flows {
    /// IPv4.
    pub v4: Vec<(FlowKey4, FlowEntry)>,
    /// IPv6.
    pub v6: Vec<(FlowKey6, FlowEntry)>,
    /// Whether the round trip to the originator, and to the responder, was measured; of each entry, in their order. `None`:
    /// it had no handshake, or another one took its cell.
    pub measured: Vec<Option<[bool; 2]>>,
}

/// It is the responder's entry of its flow.
pub fn is_responder(entry: &FlowEntry) -> bool {
    entry.status.load() & status::ORIGINATOR == 0
}

/// Which of the two it was.
pub fn measured(round_trips: Option<RoundTrips>) -> Option<[bool; 2]> {
    round_trips.map(|RoundTrips { originator_us, responder_us }| [originator_us != 0, responder_us != 0])
}

/// Runs a case. An error is a sentence about the first thing that is not as it has to be.
pub fn run(case: &Case, body: &mut dyn Body) -> Result<(), String> {
    body.reset(&case.world);
    let mut expected = vec![Counter::default(); (MAX_IFACES * OUTCOMES) as usize];
    for (number, step) in case.steps.iter().enumerate() {
        match step {
            Step::Change(change) => body.change(change),
            Step::Wait(ticks) => body.wait(*ticks),
            Step::Frame { ingress, frame, verdict, out } => {
                let sent = body.send(*ingress, frame);
                count(&mut expected, *ingress, *verdict, frame.len());
                let held = body.take_held();
                judge(*ingress, frame, *verdict, out.as_deref(), (&sent, &held))
                    .and_then(|()| same_counters(&expected, &body.counters()))
                    .map_err(|error| format!("step {number}, {}: {error}", describe(frame)))?;
            }
        }
    }
    let flows = body.flows();
    flows.check_pairs()?;
    let lines = flows.lines();
    if lines == case.flows { Ok(()) } else { Err(format!("left are {lines:#?}, not {:#?}", case.flows)) }
}

fn count(counters: &mut [Counter], ingress: u32, verdict: Verdict, length: usize) {
    let outcome = verdict.outcome().expect("a case ends decided");
    let counter = &mut counters[counter_index(Port::of(ingress).slot, outcome) as usize];
    counter.packets += 1;
    counter.bytes += length as u64;
}

type Seen<'a> = (&'a Sent, &'a [(u32, u32, Vec<u8>)]);

fn judge(
    ingress: u32,
    frame: &[u8],
    verdict: Verdict,
    out: Option<&[u8]>,
    (sent, held): Seen<'_>,
) -> Result<(), String> {
    if sent.action != verdict.into() {
        return Err(format!("{:?} for {verdict:?}, as {}", sent.action, describe(&sent.frame)));
    }
    let waits: Vec<_> = held.iter().map(|(ingress, _, frame)| (*ingress, frame.as_slice())).collect();
    let expected: &[_] = if verdict == Verdict::Pass(Pass::Held) { &[(ingress, frame)] } else { &[] };
    if waits != expected {
        return Err(format!("{waits:x?} wait for a neighbour"));
    }
    let Some(out) = out else { return Ok(()) };
    if sent.frame != out {
        let at = sent.frame.iter().zip(out).position(|(is, must)| is != must);
        let (is, must) = (describe(&sent.frame), describe(out));
        return Err(format!("differs at {at:?}: is {is}\nmust be {must}\n{:02x?}\n{out:02x?}", sent.frame));
    }
    if matches!(verdict, Verdict::Pass(_)) { Ok(()) } else { verify_checksums(&sent.frame) }
}

fn same_counters(expected: &[Counter], found: &[Counter]) -> Result<(), String> {
    let differs = |(at, (must, is)): (usize, (&Counter, &Counter))| {
        let (slot, outcome) = (at as u32 / OUTCOMES, at as u32 % OUTCOMES);
        (must != is).then(|| format!("slot {slot} outcome {outcome}: {is:?}, not {must:?}"))
    };
    let wrong: Vec<_> = expected.iter().zip(found).enumerate().filter_map(differs).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

impl Flows {
    /// One line a connection: `udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1`; an entry
    /// without its partner is `lost`.
    pub fn lines(&self) -> Vec<String> {
        let ends4 = |key: &FlowKey4| {
            [(IpAddr::from(key.source), key.source_port), (IpAddr::from(key.destination), key.destination_port)]
        };
        let ends6 = |key: &FlowKey6| {
            [(IpAddr::from(key.source), key.source_port), (IpAddr::from(key.destination), key.destination_port)]
        };
        let mut lines = lines(&self.v4, ends4, |entry| Some((IpAddr::from(entry.source()), entry.source_port())));
        lines.extend(self::lines(&self.v6, ends6, |_| None));
        lines
    }

    /// Both entries of every connection name each other and agree on its state.
    pub fn check_pairs(&self) -> Result<(), String> {
        check_pairs(&self.v4)?;
        check_pairs(&self.v6)
    }

    /// Everything, apart from when it happened.
    pub fn without_stamps(&self) -> String {
        fn write<K: Debug>(entries: &[(K, FlowEntry)]) -> String {
            let still = |(key, entry): &(K, FlowEntry)| {
                entry.last_seen.store(0);
                format!("{key:?} {entry:?}\n")
            };
            entries.iter().map(still).collect()
        }
        write(&self.v4) + &write(&self.v6)
    }
}

type End = (IpAddr, [u8; 2]);

fn lines<K: FlowKey + PartialEq>(
    entries: &[(K, FlowEntry)],
    ends: impl Fn(&K) -> [End; 2],
    becomes: impl Fn(&FlowEntry) -> Option<End>,
) -> Vec<String> {
    let find = |wanted: &K| entries.iter().find(|(key, _)| key == wanted).map(|(_, entry)| entry);
    let write = |(key, entry): &(K, FlowEntry)| {
        let bits = entry.status.load();
        let partner = find(&key.partner(entry));
        if bits & status::ORIGINATOR == 0 {
            return partner.is_none().then(|| "lost".to_owned());
        }
        let name = match key.protocol() {
            1 | 58 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => other.to_string(),
        };
        let text = |(address, port): End| match u16::from_be_bytes(port) {
            0 => address.to_string(),
            port => SocketAddr::new(address, port).to_string(),
        };
        let [source, destination] = ends(key).map(text);
        let translated = becomes(entry).filter(|_| bits & status::SOURCE_NAT != 0);
        let translated = translated.map_or(String::new(), |end| format!(" as {}", text(end)));
        let state = State::of(key.protocol(), bits).name();
        let more = [(status::STREAM, " stream"), (status::LOOSE, " loose")];
        let more: String = more.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
        let sent = entry.packets.load();
        let answered = partner.map_or("lost".to_owned(), |partner| partner.packets.load().to_string());
        Some(format!("{name} {source} > {destination}{translated}, {state}{more}, {sent}+{answered}"))
    };
    entries.iter().filter_map(write).collect()
}

fn check_pairs<K: FlowKey + PartialEq + Debug>(entries: &[(K, FlowEntry)]) -> Result<(), String> {
    for (key, entry) in entries {
        let partner_key = key.partner(entry);
        let Some((_, partner)) = entries.iter().find(|(other, _)| *other == partner_key) else { continue };
        let (bits, others) = (entry.status.load(), partner.status.load());
        if partner_key.partner(partner) != *key {
            return Err(format!("{key:?} and {partner_key:?} do not name each other"));
        }
        if (bits ^ others) & status::SHARED != 0 || (bits ^ others) & status::ORIGINATOR == 0 {
            return Err(format!("{key:?} and its partner disagree: {bits:#x}, {others:#x}"));
        }
    }
    Ok(())
}
