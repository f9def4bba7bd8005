//! What has to hold for any packets, not only for those that somebody thought of. On the sim; `golden` shows that the
//! kernel's programs do the same.
//!
//! More cases than the default: `PROPTEST_CASES=100000 cargo test -p forwarder-tests --release --test properties`.

use forwarder_ebpf::conntrack::State;
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::verdict::{Drop, Verdict};
use forwarder_golden::body::{Body, Flows};
use forwarder_golden::sim_body::SimBody;
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OUT, PUBLIC, Port, SECOND, SERVER, World, arriving};
use forwarder_kit::Packet;
use forwarder_kit::packet::{Summary, flag, fragment, verify_checksums};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Ports, payload, IP options, padding; and the protocol in words.
#[derive(Clone, Debug)]
struct Shape {
    kind: Kind,
    ports: (u16, u16),
    payload: Vec<u8>,
    options: usize,
    trailing: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    UdpWithoutChecksum,
    Tcp,
    Echo,
    Esp,
}

fn shape() -> impl Strategy<Value = Shape> {
    use Kind::{Echo, Esp, Tcp, Udp, UdpWithoutChecksum};
    let kind = prop::sample::select(vec![Udp, UdpWithoutChecksum, Tcp, Echo, Esp]);
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    (kind, any::<(u16, u16)>(), payload, 0..4usize, 0..20usize)
        .prop_map(|(kind, ports, payload, options, trailing)| Shape { kind, ports, payload, options, trailing })
}

impl Shape {
    /// As the client sends it, or (turned round) as the server answers to `ports`.
    fn packet(&self, base: Packet, (source, destination): (u16, u16), answer: bool) -> Packet {
        // Which only IPv4 has.
        let base = if self.options == 0 { base } else { base.options(&[1; 12][..self.options * 4]) };
        let packet = match self.kind {
            Kind::Udp => base.udp(source, destination),
            Kind::UdpWithoutChecksum => base.udp(source, destination).without_checksum(),
            Kind::Tcp => base.tcp(source, destination, if answer { flag::SYN | flag::ACK } else { flag::SYN }, 7),
            Kind::Echo if answer => base.echo_reply(destination, 7),
            Kind::Echo => base.echo_request(source, 7),
            Kind::Esp => base.protocol(50),
        };
        packet.payload(&self.payload).trailing(self.trailing)
    }
}

proptest! {
    /// No bytes panic, loop, lose a count, break a pair or spoil a checksum.
    #[test]
    fn the_laws_hold_for_any_script(script in prop::collection::vec(any::<u8>(), 0..600)) {
        forwarder_golden::laws::hold(&script).map_err(TestCaseError::fail)?;
    }

    /// What the controller tells the sender of a frame that has waited in vain is what the datapath would.
    #[test]
    fn controller_and_datapath_answer_alike(shape in shape(), v6 in any::<bool>(), long in any::<bool>(), cut in any::<bool>()) {
        let (source, nobody) = if v6 { (CLIENT6, "2001:db8:81::1") } else { (CLIENT, "203.0.113.133") };
        let mut shape = Shape { options: if v6 { 0 } else { shape.options }, ..shape };
        if long {
            shape.payload.resize(1400, 7);
        }
        let frame = shape.packet(arriving(IN, source, nobody), shape.ports, false).build();
        for frame in if cut { fragment(&frame, 200, 7) } else { vec![frame] } {
            let outcome = World::default().sim().process(&frame, IN, 1);
            let answered = matches!(outcome.verdict, Verdict::Answered(Drop::RouteUnreachable)).then_some(outcome.frame);
            prop_assert_eq!(forwarder::unreachable::answer(&frame, &Port::of(IN).config()), answered);
        }
    }

    /// Bytes alone, with nothing sensible about them.
    #[test]
    fn noise_ends_somehow(frame in prop::collection::vec(any::<u8>(), 0..200), ours in any::<bool>(), v6 in any::<bool>()) {
        let sim = World::default().sim();
        let mut frame = frame;
        let ether_type = if v6 { [0x86, 0xdd] } else { [8, 0] };
        let header = [&forwarder_golden::world::Port::of(IN).mac(1)[..], &[2; 6], &ether_type].concat();
        if ours && frame.len() >= header.len() {
            frame[..14].copy_from_slice(&header);
        }
        prop_assert!(!matches!(sim.process(&frame, IN, 1).verdict, Verdict::Next(_)));
    }

    /// What goes out translated and comes back, is what the client has sent and what it expects, to the byte.
    #[test]
    fn out_and_back_restores_the_packet(shape in shape()) {
        let sim = World::default().sim();
        let sent = shape.packet(arriving(IN, CLIENT, SERVER), shape.ports, false).build();
        let out = sim.process(&sent, IN, 1);
        prop_assert_eq!(out.verdict, Verdict::Forward(1));
        verify_checksums(&out.frame).map_err(TestCaseError::fail)?;

        let public = outside_port(&shape, &out.frame);
        let expected = Packet::between(PUBLIC, SERVER).ttl(63);
        let expected = shape.packet(expected, (public, shape.ports.1), false).build();
        prop_assert_eq!(&out.frame[14..], &expected[14..]);

        let answer = shape.packet(arriving(OUT, SERVER, PUBLIC), (shape.ports.1, public), true);
        let back = sim.process(&answer.build(), OUT, 2);
        prop_assert_eq!(back.verdict, Verdict::Forward(0));
        let expected = Packet::between(SERVER, CLIENT).ttl(63);
        let expected = shape.packet(expected, (shape.ports.1, shape.ports.0), true).build();
        prop_assert_eq!(&back.frame[14..], &expected[14..]);
    }

    /// Two hosts, any ports: from outside their flows are two, whoever is on another CPU at the same moment.
    #[test]
    fn two_flows_never_share_an_outside(one in shape(), other in shape(), same in any::<bool>(), seed in any::<u32>()) {
        let other = if same { Shape { ports: one.ports, kind: one.kind, ..other } } else { other };
        let sim = World::default().ports(4000, 4003).sim().seed(seed);
        let first = one.packet(arriving(IN, CLIENT, SERVER), one.ports, false).build();
        let second = other.packet(arriving(IN, SECOND, SERVER), other.ports, false).build();
        sim.race(move |sim| drop(sim.process(&second, IN, 1)));
        sim.process(&first, IN, 1);
        outside_is_distinct(&sim)?;
    }

    /// Two CPUs make the same flow at the same moment: it exists once, whole, and both packets leave alike.
    #[test]
    fn a_flow_that_two_cpus_make_is_one(shape in shape(), seed in any::<u32>()) {
        let sim = World::default().ports(4000, 4003).sim().seed(seed);
        let frame = shape.packet(arriving(IN, CLIENT, SERVER), shape.ports, false).build();
        let twin = frame.clone();
        let raced = Rc::new(RefCell::new(None));
        let other = Rc::clone(&raced);
        sim.race(move |sim| drop(other.replace(Some(sim.process(&twin, IN, 1)))));
        let mine = sim.process(&frame, IN, 1);
        prop_assert_eq!(Some(mine), raced.take());
        outside_is_distinct(&sim)?;
        prop_assert_eq!(sim.flows4.all().len(), 2);
    }

    /// Whatever both ends send, in whatever order, both entries say the same.
    #[test]
    fn segments_in_any_order_leave_a_consistent_pair(
        segments in prop::collection::vec((any::<bool>(), 0..32u8), 1..40),
        loose in any::<bool>(),
    ) {
        let mut body = SimBody::default();
        body.reset(&World::default().with(|control| control.loose_tcp = u8::from(loose)));
        let mut states = vec![];
        let mut resets = [false; 2];
        for (outward, flags) in segments {
            let packet = if outward { arriving(IN, CLIENT, SERVER) } else { arriving(OUT, SERVER, PUBLIC) };
            let (source, destination) = if outward { (4000, 80) } else { (80, 4000) };
            let ingress = if outward { IN } else { OUT };
            body.send(ingress, &packet.tcp(source, destination, flags, 1).build());
            let flows = body.flows();
            flows.check_pairs().map_err(TestCaseError::fail)?;
            prop_assert!(flows.v4.len() % 2 == 0 && flows.v4.len() <= 2);
            let state = flows.v4.first().map(|(_, entry)| State::of(6, entry.status.load()));
            let reopened = state < states.last().copied().flatten() && flags & 0x16 == flag::SYN;
            // Who goes on after its reset has not sent it.
            let taken_back = resets[usize::from(outward)] && flags & 0x16 == flag::ACK;
            let forward = state >= states.last().copied().flatten();
            prop_assert!(forward || reopened || taken_back, "{states:?} then {state:?}");
            resets[usize::from(outward)] |= flags & flag::RST != 0;
            states.push(state);
        }
    }
}

/// The port, or identifier, that the translated packet leaves with.
fn outside_port(shape: &Shape, frame: &[u8]) -> u16 {
    let seen = Summary::of(frame).expect("an IP packet");
    match (seen.ports, seen.icmp) {
        (Some((source, _)), _) => source,
        (_, Some((_, _, rest))) => (rest >> 16) as u16,
        _ => shape.ports.0,
    }
}

fn outside_is_distinct(sim: &Sim) -> Result<(), TestCaseError> {
    let copied = |(key, entry): (_, &forwarder_ebpf::abi::FlowEntry)| (key, entry.clone());
    let flows = Flows { v4: sim.flows4.all().into_iter().map(copied).collect(), ..Flows::default() };
    flows.check_pairs().map_err(TestCaseError::fail)?;
    forwarder_golden::laws::distinct_outside(&flows).map_err(TestCaseError::fail)?;
    let lost = flows.lines().into_iter().find(|line| line.contains("lost"));
    prop_assert!(lost.is_none(), "{lost:?}");
    Ok(())
}

/// Two hosts with the same ports to the same server, until the table is full: who keeps its port and who gets another, all
/// are served, and who is not is told why.
#[test]
fn in_a_crowded_table_every_port_is_found() {
    const ROOM: u16 = 8000;
    let sim = World::default().sim().capacity(u32::from(ROOM));
    for (client, count) in [(CLIENT, ROOM * 3 / 8), (SECOND, ROOM)] {
        for port in (2000..).take(count.into()) {
            let verdict = sim.process(&arriving(IN, client, SERVER).udp(port, 53).build(), IN, 1).verdict;
            let is_full =
                verdict == Verdict::Drop(Drop::TableFull) || matches!(verdict, Verdict::Answered(Drop::TableFull));
            assert!(matches!(verdict, Verdict::Forward(_)) || is_full, "{client:?} port {port}: {verdict:?}");
        }
    }
    assert!(sim.flows4.all().len() > usize::from(ROOM) * 99 / 100);
}

/// What the fuzzer has found, or was given to begin with.
#[test]
fn the_corpus_holds() -> std::io::Result<()> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/pipeline");
    let mut played = 0;
    for file in std::fs::read_dir(corpus)? {
        let path = file?.path();
        forwarder_golden::laws::hold(&std::fs::read(&path)?)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        played += 1;
    }
    assert!(played >= 8, "{played} files");
    Ok(())
}
