//! IPv6: stateful, never translated.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, back6, case, out6};
use forwarder_golden::world::{CLIENT6, IN, OUT, SERVER6, World, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::{ACK, RST, SYN};
use forwarder_kit::packet::protocol;

pub fn cases() -> Vec<Case> {
    let wrapped = |base: Packet| base.extension(0, &[5, 2, 0, 0]).extension(60, &[]).udp(4000, 53).payload_of(9);
    let seven = |count| (0..count).fold(out6(), |packet, _| packet.extension(60, &[])).udp(4000, 53);
    vec![
        case("an IPv6 flow goes out and its answer comes back")
            .forwards(IN, out6().udp(4000, 53).payload(b"?"), OUT, gone().udp(4000, 53).payload(b"?"))
            .forwards(OUT, back6().udp(53, 4000), IN, come().udp(53, 4000))
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, established, 1+1"]),
        case("an IPv6 connection is followed")
            .forwards(IN, out6().tcp(4000, 80, SYN, 1), OUT, gone().tcp(4000, 80, SYN, 1))
            .forwards(OUT, back6().tcp(80, 4000, SYN | ACK, 1), IN, come().tcp(80, 4000, SYN | ACK, 1))
            .forwards(IN, out6().tcp(4000, 80, ACK, 2), OUT, gone().tcp(4000, 80, ACK, 2))
            .drops(IN, out6().tcp(4001, 80, ACK, 2), Drop::NoFlow)
            .leaves(&["tcp [2001:db8:1::10]:4000 > [2001:db8:3::10]:80, established, 2+1"]),
        case("a ping over IPv6 is followed, other ICMPv6 is not forwarded")
            .forwards(IN, out6().echo_request(5, 1), OUT, gone().echo_request(5, 1))
            .forwards(OUT, back6().echo_reply(5, 1), IN, come().echo_reply(5, 1))
            .drops(IN, out6().echo_reply(5, 1), Drop::NoFlow)
            .drops(IN, out6().icmp(200, 0, 0), Drop::IcmpUnsupported)
            .leaves(&["icmp [2001:db8:1::10]:5 > 2001:db8:3::10, established, 1+1"]),
        case("the outside begins no IPv6 flow").drops(OUT, back6().tcp(80, 4000, SYN, 1), Drop::Policy),
        case("the outside opens no closed IPv6 connection again")
            .forwards(IN, out6().tcp(4000, 80, SYN, 1), OUT, gone().tcp(4000, 80, SYN, 1))
            .forwards(OUT, back6().tcp(80, 4000, RST, 1), IN, come().tcp(80, 4000, RST, 1))
            .drops(OUT, back6().tcp(80, 4000, SYN, 1), Drop::Policy)
            .leaves(&["tcp [2001:db8:1::10]:4000 > [2001:db8:3::10]:80, closing, 1+1"]),
        case("the outside begins an IPv6 flow where it may")
            .world(World::default().with(|control| control.outside_allowed = 1))
            .forwards(OUT, back6().tcp(80, 4000, SYN, 1), IN, come().tcp(80, 4000, SYN, 1))
            .leaves(&["tcp [2001:db8:3::10]:80 > [2001:db8:1::10]:4000, unreplied, 1+0"]),
        case("protocols without ports are followed by address")
            .forwards(IN, esp(out6()), OUT, esp(gone()))
            .forwards(OUT, esp(back6()), IN, esp(come()))
            .leaves(&["50 2001:db8:1::10 > 2001:db8:3::10, established, 1+1"]),
        case("extension headers are followed to the ports")
            .forwards(IN, wrapped(out6()), OUT, wrapped(gone()))
            .forwards(OUT, back6().udp(53, 4000), IN, come().udp(53, 4000))
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, established, 1+1"]),
        case("six extension headers are followed, seven are not")
            .forwards(IN, seven(6), OUT, (0..6).fold(gone(), |packet, _| packet.extension(60, &[])).udp(4000, 53))
            .drops(IN, seven(7), Drop::ExtensionHeaders)
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"]),
        case("flow label and traffic class stay")
            .forwards(
                IN,
                out6().flow_label(0xabcde).traffic_class(0xb8).udp(4000, 53),
                OUT,
                gone().flow_label(0xabcde).traffic_class(0xb8).udp(4000, 53),
            )
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"]),
    ]
}

fn gone() -> Packet {
    leaving(OUT, CLIENT6, SERVER6)
}

fn come() -> Packet {
    leaving(IN, SERVER6, CLIENT6)
}

fn esp(base: Packet) -> Packet {
    base.protocol(protocol::ESP).payload(&[1, 2, 3, 4, 0, 0, 0, 1])
}
