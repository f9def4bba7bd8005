//! Fragments: the first names the flow, the others follow it.

use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, back6, case, out, out6};
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::{fragment, protocol};

const LEFT: &[&str] = &["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 3+0"];

pub fn cases() -> Vec<Case> {
    let whole = out().id(99).udp(4000, 53).payload_of(3000);
    let gone = leaving(OUT, PUBLIC, SERVER).id(99).udp(4000, 53).payload_of(3000);
    let (pieces, translated) = (cut(&whole), cut(&gone));
    let late = World::default().with(|control| control.fragment_ticks = 1);
    vec![
        case("the fragments of a new flow's first datagram all leave translated")
            .train(IN, &pieces, OUT, &translated)
            .leaves(LEFT),
        answered(),
        case("later fragments may change their order")
            .train(IN, &pieces[..1], OUT, &translated[..1])
            .train(IN, &pieces[2..], OUT, &translated[2..])
            .train(IN, &pieces[1..2], OUT, &translated[1..2])
            .leaves(LEFT),
        case("a later fragment that comes before the first cannot be decided")
            .drops_frame(IN, pieces[1].clone(), Drop::FragmentUndecided)
            .train(IN, &pieces[..1], OUT, &translated[..1])
            .train(IN, &pieces[1..], OUT, &translated[1..])
            .leaves(LEFT),
        case("a later fragment of another datagram is not the first one's")
            .train(IN, &pieces[..1], OUT, &translated[..1])
            .drops_frame(IN, cut(&whole.clone().id(98))[1].clone(), Drop::FragmentUndecided)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("a fragment that comes too late is not decided any more")
            .world(late)
            .train(IN, &pieces[..1], OUT, &translated[..1])
            .wait(20)
            .drops_frame(IN, pieces[1].clone(), Drop::FragmentUndecided)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("later fragments for the host are the host's to reassemble").passes_frame(
            IN,
            cut(&arriving(IN, CLIENT, "10.0.1.1").udp(1, 2).payload_of(3000))[1].clone(),
            Pass::Host,
        ),
        case("a first fragment without its TCP header is malformed").drops(
            IN,
            out().fragment(3, 0, true).protocol(protocol::TCP).payload_of(16),
            Drop::Malformed,
        ),
        case("a first fragment from outside without a flow is the firewall's").drops_frame(
            OUT,
            cut(&arriving(OUT, SERVER, CLIENT).udp(53, 4000).payload_of(3000))[0].clone(),
            Drop::Policy,
        ),
        ipv6(),
        case("an IPv6 fragment that comes first cannot be decided, and one for the host is the host's")
            .drops_frame(IN, cut(&out6().udp(4000, 53).payload_of(3000))[1].clone(), Drop::FragmentUndecided)
            .passes_frame(
                IN,
                cut(&arriving(IN, CLIENT6, "2001:db8:1::1").udp(1, 2).payload_of(3000))[1].clone(),
                Pass::Host,
            ),
        case("an IPv6 packet with a fragment header but in one piece is a whole one")
            .forwards(IN, atomic(out6()), OUT, atomic(leaving(OUT, CLIENT6, SERVER6)))
            .forwards(OUT, back6().udp(53, 4000), IN, leaving(IN, SERVER6, CLIENT6).udp(53, 4000))
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, established, 1+1"]),
    ]
}

fn answered() -> Case {
    let back = arriving(OUT, SERVER, PUBLIC).id(5).udp(53, 4000).payload_of(3000);
    let come = leaving(IN, SERVER, CLIENT).id(5).udp(53, 4000).payload_of(3000);
    case("a fragmented answer finds its way back")
        .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
        .train(OUT, &cut(&back), IN, &cut(&come))
        .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+3"])
}

fn ipv6() -> Case {
    let whole = out6().udp(4000, 53).payload_of(3000);
    let gone = leaving(OUT, CLIENT6, SERVER6).udp(4000, 53).payload_of(3000);
    case("IPv6 fragments follow their first")
        .train(IN, &cut(&whole), OUT, &cut(&gone))
        .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 3+0"])
}

fn cut(packet: &Packet) -> Vec<Vec<u8>> {
    fragment(&packet.build(), 1400, 77)
}

/// UDP behind a fragment header that says "all of it".
fn atomic(base: Packet) -> Packet {
    base.fragment(9, 0, false).udp(4000, 53).payload_of(30)
}

/// Fragments one after the other.
trait Train {
    fn train(self, ingress: u32, pieces: &[Vec<u8>], egress: u32, out: &[Vec<u8>]) -> Self;
}

impl Train for Case {
    fn train(self, ingress: u32, pieces: &[Vec<u8>], egress: u32, out: &[Vec<u8>]) -> Self {
        let pairs = pieces.iter().zip(out);
        pairs.fold(self, |case, (piece, out)| case.forwards_frame(ingress, piece.clone(), egress, out.clone()))
    }
}
