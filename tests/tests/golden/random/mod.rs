//! Random rules and random packets: a plain reading of the rules says what has to become of each packet, and which rule
//! counts it; both bodies have to do that, and the same.

mod probes;
mod rules;

use forwarder_ebpf::abi::firewall::{COUNTER_INSIDE, COUNTER_OUTSIDE};
use forwarder_golden::body::{Body, Hits};
use forwarder_golden::case::Change;
use forwarder_golden::world::World;
use forwarder_kit::packet::ETHERNET;
use forwarder_kit::packet::protocol::{ESP, GRE, ICMP, ICMPV6, TCP, UDP};
use probes::{DIGITS, Detail, Ends, FIRST_FLAGS, PATHS, Probe};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
pub use rules::Policy;
use rules::{ACTIONS, Icmp, Item, Rule, Service, What};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Packets that are sent before the flows are forgotten: both ways of each have room in the world's table.
const BATCH: usize = 6;

/// Sends the packets in a world with these rules.
///
/// # Errors
/// The packet of which the body has not done what the rules say.
pub fn try_rules(policy: &Policy, probes: &[Probe], body: &mut dyn Body) -> Result<(), String> {
    let text = policy.text();
    let world = World::default().rules(&text).with(|control| {
        [control.inside_allowed, control.outside_allowed] = policy.defaults;
        (control.loose_tcp, control.icmp_per_second) = (1, 1 << 20);
    });
    body.reset(&world);
    for batch in probes.chunks(BATCH) {
        body.change(&Change::ForgetFlows);
        let mut taken = BTreeSet::new();
        for probe in batch.iter().filter(|probe| taken.insert(probe.place())) {
            let context = |error| format!("{error}: {probe:?} under\n{text}");
            try_probe(policy, probe, body).map_err(context)?;
        }
    }
    Ok(())
}

fn try_probe(policy: &Policy, probe: &Probe, body: &mut dyn Body) -> Result<(), String> {
    let count = 2 + policy.host.len() + policy.rules.len();
    let frame = probe.frame();
    let mut expected = body.rule_hits(count);
    let sent = body.send(probe.path.ingress, &frame);
    let (rule, action) = policy.judge(probe);
    let by_default = if probe.path.enters.side == "inside" { COUNTER_INSIDE } else { COUNTER_OUTSIDE };
    if rule.is_some() || !probe.path.leaves.is_host() {
        let hits = &mut expected[rule.map_or(by_default.into(), |rule| 2 + rule)];
        *hits = Hits { packets: hits.packets + 1, bytes: hits.bytes + (frame.len() - ETHERNET) as u64 };
    }
    let found = body.rule_hits(count);
    if found != expected {
        return Err(format!("{found:?} were hit, not {expected:?}"));
    }
    let must = probe.fate(ACTIONS[usize::from(action)]);
    let (is, ends) = (sent.action, Ends::of(&sent.frame));
    if (is, ends) == must { Ok(()) } else { Err(format!("{:?}, not {must:?}", (is, ends))) }
}

/// Rules, and packets for them.
pub fn rules_and_packets() -> impl Strategy<Value = (Policy, Vec<Probe>)> {
    (policies(), vec(packets(), 50 * BATCH))
}

/// The rules of a seed.
pub fn policy(seed: u64) -> Policy {
    let seed = [seed.to_le_bytes(); 4].concat();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    policies().new_tree(&mut runner).expect("nothing is filtered").current()
}

/// Rules that mean some of the packets.
fn policies() -> impl Strategy<Value = Policy> {
    let set = || vec(prefixes(), 1..5);
    let action = || prop_oneof![Just(0u8), Just(1), Just(2)];
    let host = rule().prop_map(|rule| Rule { leaves: None, translated: None, ..rule });
    (set(), set(), vec(host, 0..6), vec(rule(), 0..24), action(), action()).prop_map(
        |(one, other, host, rules, inside, outside)| Policy {
            sets: [one, other],
            host,
            rules,
            defaults: [inside, outside],
        },
    )
}

fn packets() -> impl Strategy<Value = Probe> {
    let detail = prop_oneof![
        3 => (52u16..57).prop_map(Detail::Udp),
        3 => (52u16..57, select(&FIRST_FLAGS[..])).prop_map(|(port, flags)| Detail::Tcp(port, flags)),
        1 => (0u8..2).prop_map(Detail::Echo),
        1 => select(&[GRE, ESP][..]).prop_map(Detail::Other),
    ];
    (select(&PATHS[..]), 0..DIGITS.len(), 0..DIGITS.len(), 4000u16..4016, detail)
        .prop_map(|(path, source, destination, port, detail)| Probe::new(path, (source, destination), port, detail))
}

fn rule() -> impl Strategy<Value = Rule> {
    let place = || option::weighted(0.3, select(&["inside", "outside", "in0", "out0", "arm0"][..]));
    let translated = option::weighted(0.1, any::<bool>());
    (0u8..3, place(), place(), items(), items(), services(), translated).prop_map(
        |(action, enters, leaves, sources, destinations, service, translated)| Rule {
            action,
            enters,
            leaves,
            sources,
            destinations,
            service,
            translated,
        },
    )
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let what = prop_oneof![
        3 => prefixes(),
        2 => (networks(), 0..DIGITS.len(), 0..DIGITS.len()).prop_map(|(network, one, other)| {
            What::Range(address(network, one.min(other)), address(network, one.max(other)))
        }),
        1 => (0usize..2).prop_map(What::Set),
    ];
    let item = (prop::bool::weighted(0.25), what).prop_map(|(negated, what)| Item { negated, what });
    prop_oneof![2 => Just(Vec::new()), 3 => vec(item, 1..5)]
}

fn networks() -> impl Strategy<Value = &'static str> {
    select(PATHS.iter().map(|path| path.sources).collect::<Vec<_>>())
}

fn address(network: &str, digits: usize) -> IpAddr {
    format!("{network}{}", DIGITS[digits]).parse().expect("an address")
}

fn prefixes() -> impl Strategy<Value = What> {
    let bits = select(&[32u8, 32, 31, 30, 29, 28, 24, 16, 8, 0][..]);
    (networks(), 0..DIGITS.len(), bits).prop_map(|(network, digits, bits)| match address(network, digits) {
        IpAddr::V4(address) => {
            let left_out = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
            What::Prefix(IpAddr::V4((address.to_bits() & !left_out).into()), bits)
        }
        IpAddr::V6(address) => {
            // Within the last 32 bits, or in steps of 16 before them.
            let bits = if bits > 24 { 96 + bits } else { bits * 4 };
            let left_out = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
            What::Prefix(IpAddr::V6((address.to_bits() & !left_out).into()), bits)
        }
    })
}

fn services() -> impl Strategy<Value = Service> {
    let ports = |first: u16| {
        let range = (0u16..6, 0u16..3).prop_map(move |(from, more)| (first + from, first + from + more));
        prop_oneof![1 => Just(Vec::new()), 2 => vec(range, 1..3)]
    };
    let with_ports = (select(vec![vec![], vec![TCP], vec![UDP], vec![TCP, UDP]]), ports(3999), ports(51)).prop_map(
        |(protocols, source_ports, destination_ports)| Service {
            protocols,
            source_ports,
            destination_ports,
            ..Service::default()
        },
    );
    let flags = (proptest::sample::subsequence(&FLAGS[..], 1..3), any::<[bool; 4]>(), ports(51)).prop_map(
        |(flags, set, destination_ports)| Service {
            protocols: vec![TCP],
            destination_ports,
            flags: flags.into_iter().zip(set).collect(),
            ..Service::default()
        },
    );
    let icmp = (select(vec![vec![ICMP], vec![ICMPV6], vec![ICMP, ICMPV6]]), vec(select(&MESSAGES[..]), 0..3))
        .prop_map(|(protocols, icmp)| Service { protocols, icmp, ..Service::default() });
    let others = select(vec![vec![GRE], vec![ESP, UDP], vec![GRE, ICMP, TCP]])
        .prop_map(|protocols| Service { protocols, ..Service::default() });
    prop_oneof![2 => Just(Service::default()), 4 => with_ports, 2 => flags, 1 => icmp, 1 => others]
}

const FLAGS: [(&str, u8); 4] = [("syn", 2), ("psh", 8), ("ack", 16), ("urg", 32)];

const MESSAGES: [Icmp; 6] = [
    ("echo-request", 8, 128, None),
    ("echo-reply", 0, 129, None),
    ("8", 8, 8, None),
    ("128/0", 128, 128, Some(0)),
    ("8/1", 8, 8, Some(1)),
    ("8/0", 8, 8, Some(0)),
];
