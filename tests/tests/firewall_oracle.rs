//! Compiled policies against a matcher that goes through the rules one by one: random rules, random packets, and packets
//! at the very edges of what the rules name. The search is the datapath's own code.

use forwarder::firewall::compile::{Matcher, compile};
use forwarder::firewall::ranges::{Addresses, LAST4, LAST6, Ranges};
use forwarder::firewall::shadow;
use forwarder_ebpf::abi::firewall::{origin_key, rule, service_key, way_key};
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::tables::Asked;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Enough for every random policy here.
const ROOM: u64 = 1 << 30;
const SERVICES: u128 = 0xff_ffff;
const WAYS: u128 = 0x1fff;

/// What is looked at, as numbers: source, destination, service, origin, way.
type Packet = [u128; 5];

fn fields(matcher: &Matcher, is_ipv4: bool) -> [&Ranges; 5] {
    let (sources, destinations) = (&matcher.sources, &matcher.destinations);
    let [source, destination] = match is_ipv4 {
        true => [&sources.v4, &destinations.v4],
        false => [&sources.v6, &destinations.v6],
    };
    [source, destination, &matcher.services, &matcher.origins, &matcher.ways]
}

/// The oracle.
fn linear(matchers: &[Matcher], is_ipv4: bool, packet: &Packet) -> Option<u64> {
    let matches =
        |matcher: &&Matcher| fields(matcher, is_ipv4).iter().zip(packet).all(|(field, at)| field.contains(*at));
    matchers.iter().find(matches).map(|matcher| matcher.word)
}

fn compiled(sim: &Sim, is_ipv4: bool, packet: &Packet) -> Option<u64> {
    let [source, destination] = [packet[0], packet[1]].map(|address| [(address >> 64) as u64, address as u64]);
    let [service, origin, way] = [packet[2], packet[3], packet[4]].map(|key| key as u64);
    let asked = Asked { source, destination, service, origin, way, bytes: 0, purpose: Asked::BEGINS, zero: [0; 3] };
    sim.rule_word(&asked, is_ipv4)
}

fn ranges(last: u128, within: impl Strategy<Value = u128> + Clone + 'static) -> BoxedStrategy<Ranges> {
    let range = (within.clone(), within).prop_map(|(one, other)| (one.min(other), one.max(other)));
    prop_oneof![
        4 => Just(Ranges::up_to(last)),
        6 => proptest::collection::vec(range, 0..4).prop_map(|all| all.into_iter().collect()),
    ]
    .boxed()
}

/// Prefixes that nest and touch, as operators write them, and a few arbitrary ranges.
fn addresses() -> impl Strategy<Value = Addresses> {
    let v4 = prop_oneof![
        Just(Ranges::up_to(LAST4)),
        Just(Ranges::default()),
        proptest::collection::vec((0u32..16, 8u32..=32), 1..5).prop_map(|all| {
            let prefix = |(net, bits): (u32, u32)| {
                let size = 1u128 << (32 - bits);
                let first = u128::from(0x0a00_0000u32 | net << 12) / size * size;
                (first, first + size - 1)
            };
            all.into_iter().map(prefix).collect()
        }),
        ranges(LAST4, 0u128..=LAST4),
    ];
    let v6 = prop_oneof![
        Just(Ranges::up_to(LAST6)),
        Just(Ranges::default()),
        proptest::collection::vec((0u128..8, prop_oneof![16u32..=128, Just(64), Just(128), Just(63)]), 1..5).prop_map(
            |all| {
                let prefix = |(net, bits): (u128, u32)| {
                    let mask = (1u128 << (128 - bits)) - 1;
                    let first = (0x2001_0db8u128 << 96 | net << 64 | net) & !mask;
                    (first, first | mask)
                };
                all.into_iter().map(prefix).collect()
            }
        ),
        ranges(LAST6, any::<u128>()),
    ];
    (v4, v6).prop_map(|(v4, v6)| Addresses { v4, v6 })
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let services = prop_oneof![
        ranges(SERVICES, 0..=SERVICES),
        (prop_oneof![Just(6u8), Just(17)], 1u16..100, 0u16..50).prop_map(|(protocol, first, more)| {
            [(service_key(protocol, first).into(), service_key(protocol, first + more).into())].into_iter().collect()
        }),
    ];
    let ways = ranges(WAYS, 0..=WAYS);
    (addresses(), addresses(), services, ranges(SERVICES, 0..=SERVICES), ways).prop_map(
        |(sources, destinations, services, origins, ways)| Matcher {
            sources,
            destinations,
            services,
            origins,
            ways,
            word: 0,
        },
    )
}

/// Numbers at, just below and just above the edges of a field, and any others.
fn near(edges: Vec<u128>, last: u128) -> impl Strategy<Value = u128> {
    (any::<proptest::sample::Index>(), 0u8..4, any::<u128>()).prop_map(move |(index, how, other)| match how {
        _ if edges.is_empty() => other % (last.saturating_add(1)).max(1),
        0 => *index.get(&edges),
        1 => index.get(&edges).saturating_sub(1),
        2 => index.get(&edges).saturating_add(1).min(last),
        _ => other & last,
    })
}

fn packets(matchers: &[Matcher], is_ipv4: bool) -> impl Strategy<Value = Packet> {
    let last = if is_ipv4 { LAST4 } else { LAST6 };
    let lasts = [last, last, SERVICES, SERVICES, WAYS];
    let edges = |field: usize| -> Vec<u128> {
        let all = matchers.iter().flat_map(|matcher| fields(matcher, is_ipv4)[field].as_slice());
        all.flat_map(|(first, last)| [*first, *last]).collect()
    };
    [0, 1, 2, 3, 4].map(|field| near(edges(field), lasts[field]))
}

#[test]
fn compiled_rules_say_what_the_rules_say() {
    // 400 policies, 300 packets of each family.
    let mut runner = TestRunner::new(Config { cases: 400, ..Config::default() });
    let policies = proptest::collection::vec(matcher(), 0..40);
    runner
        .run(&policies, |mut matchers| {
            for (at, matcher) in (0..).zip(&mut matchers) {
                matcher.word = at;
            }
            let policy = compile(&matchers, ROOM).expect("it is small");
            let mut sim = Sim::new();
            sim.set_policy(&policy.lines);
            for is_ipv4 in [true, false] {
                let strategy = packets(&matchers, is_ipv4);
                let mut inner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
                inner
                    .run(&strategy, |packet| {
                        prop_assert_eq!(compiled(&sim, is_ipv4, &packet), linear(&matchers, is_ipv4, &packet));
                        Ok(())
                    })
                    .map_err(|error| TestCaseError::fail(error.to_string()))?;
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Small worlds: every number of a field is one of five, so all packets that rules tell apart can be tried. Rules look at
/// one field or two, mostly at the same in both families, or hardly one would be hidden by several others.
fn small() -> impl Strategy<Value = Vec<Matcher>> {
    let all = || [(0, 4)].into_iter().collect::<Ranges>();
    let some = || {
        proptest::collection::vec((0u128..5, 0u128..4), 0..4).prop_map(|ranges| {
            ranges.into_iter().map(|(first, more)| (first, (first + more).min(4))).collect::<Ranges>()
        })
    };
    let looks = proptest::collection::vec((prop_oneof![3 => Just(0), 1 => 0usize..7], some()), 1..3);
    let matcher = looks.prop_map(move |looks| {
        let mut matcher = Matcher {
            sources: Addresses { v4: all(), v6: all() },
            destinations: Addresses { v4: all(), v6: all() },
            services: all(),
            origins: all(),
            ways: all(),
            word: 0,
        };
        for (field, ranges) in looks {
            match field {
                0 => matcher.sources = Addresses { v4: ranges.clone(), v6: ranges },
                1 => matcher.destinations = Addresses { v4: ranges.clone(), v6: ranges },
                2 => matcher.services = ranges,
                3 => matcher.origins = ranges,
                4 => matcher.ways = ranges,
                5 => matcher.sources.v4 = ranges,
                _ => matcher.destinations.v6 = ranges,
            }
        }
        matcher
    });
    proptest::collection::vec(matcher, 1..12)
}

/// A rule is said to be hidden when no packet gets to it, and by rules that take every packet that fits it.
#[test]
fn hidden_rules_are_those_that_no_packet_meets() {
    let mut runner = TestRunner::new(Config { cases: 300, ..Config::default() });
    let together = std::cell::Cell::new(0);
    runner
        .run(&small(), |mut matchers| {
            let counters: Vec<u16> = (0..).take(matchers.len()).collect();
            for (matcher, counter) in matchers.iter_mut().zip(&counters) {
                matcher.word = u64::from(*counter) << rule::COUNTER_SHIFT;
            }
            let policy = compile(&matchers, ROOM).expect("it is small");
            let hidden = shadow::hidden(&matchers, &policy.lines, &counters);
            let mut met = vec![false; matchers.len()];
            for (packet, is_ipv4) in (0..5u128.pow(5)).flat_map(|number| [(number, true), (number, false)]) {
                let packet = [0, 1, 2, 3, 4].map(|field| number_at(packet, field));
                let fits = |at: usize| {
                    fields(&matchers[at], is_ipv4).iter().zip(&packet).all(|(field, at)| field.contains(*at))
                };
                let Some(first) = (0..matchers.len()).find(|at| fits(*at)) else { continue };
                met[first] = true;
                for (at, by) in hidden.iter().enumerate().filter(|(at, _)| fits(*at)) {
                    let taken = by.as_ref().is_none_or(|by| by.iter().any(|earlier| *earlier < at && fits(*earlier)));
                    prop_assert!(taken, "{at} is said to be hidden by {by:?}: {packet:?}");
                }
            }
            together.set(together.get() + hidden.iter().flatten().filter(|by| by.len() > 1).count());
            for (at, by) in hidden.iter().enumerate() {
                prop_assert_eq!(by.is_some(), !met[at], "{}: {:?}", at, by);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    // By chance; 25 runs had 108 to 165, 137 in the mean.
    assert!(together.get() > 50, "only {} rules were hidden by several", together.get());
}

/// What the README promises of a set of a million prefixes, which neither touch nor nest: kernel memory, and hidden rules
/// found in no time.
#[test]
fn a_million_prefixes_take_what_is_promised() {
    const MIB: f64 = 1048576.0;
    let spread = |at: u128, bits: u32| (at * 2 + 1) << bits;
    let of = |v4: Ranges, v6: Ranges| {
        let sources = Addresses { v4, v6 };
        let (services, ways) = (Ranges::up_to(SERVICES), Ranges::up_to(WAYS));
        let one = |counter: u64| Matcher {
            sources: sources.clone(),
            destinations: Addresses::all(),
            services: services.clone(),
            origins: services.clone(),
            ways: ways.clone(),
            word: counter << rule::COUNTER_SHIFT,
        };
        let matchers = [one(0), one(1)];
        let policy = compile(&matchers, ROOM).expect("there is room");
        assert_eq!(shadow::hidden(&matchers, &policy.lines, &[0, 1]), [None, Some(vec![0])]);
        policy.bytes() as f64 / MIB
    };
    let million =
        |bits: u32, size: u128| (0..1_000_000).map(|at| (spread(at, bits), spread(at, bits) + size)).collect();
    let figures = [
        ("IPv4 /32", of(million(10, 0), Ranges::default()), 33.0),
        ("IPv6 /48", of(Ranges::default(), million(100, (1 << 80) - 1)), 33.0),
        ("IPv6 /128", of(Ranges::default(), million(100, 0)), 156.0),
    ];
    for (what, mib, promised) in figures {
        println!("a million of {what}: {mib:.1} MiB");
        assert!(mib <= promised, "a million of {what}: {mib:.1} MiB");
    }
}

/// One of five numbers.
fn number_at(packet: u128, field: u32) -> u128 {
    packet / 5u128.pow(field) % 5
}

/// Many rules, so that blocks and groups of rules are passed over: the last of them matches, or none.
#[test]
fn thousands_of_rules_keep_their_order() {
    let rule = |at: u128| Matcher {
        sources: Addresses {
            v4: [(at, at + 7)].into_iter().collect(),
            v6: [(at << 64, (at + 7) << 64)].into_iter().collect(),
        },
        destinations: Addresses::all(),
        services: Ranges::up_to(SERVICES),
        origins: if at.is_multiple_of(3) { Ranges::up_to(SERVICES) } else { [(at, at)].into_iter().collect() },
        ways: Ranges::up_to(WAYS),
        word: at as u64,
    };
    let matchers: Vec<_> = (0..10_000).map(rule).collect();
    let policy = compile(&matchers, ROOM).expect("there is room");
    let mut sim = Sim::new();
    sim.set_policy(&policy.lines);
    for at in (0..10_020u128).step_by(7) {
        for origin in [at, at.saturating_sub(3), origin_key(2, 9).into()] {
            for is_ipv4 in [true, false] {
                let source = if is_ipv4 { at } else { at << 64 };
                let packet = [source, 1, service_key(6, 80).into(), origin, way_key(1, true, 2, false).into()];
                assert_eq!(compiled(&sim, is_ipv4, &packet), linear(&matchers, is_ipv4, &packet), "{packet:?}");
            }
        }
    }
}
