//! What goes through NAT beside plain UDP and TCP, and the packets with something unusual about them.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, case, error_to, out, quoted};
use forwarder_golden::world::{CLIENT, IN, OUT, PUBLIC, SECOND, SERVER, arriving, leaving, v4};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::SYN;
use forwarder_kit::packet::protocol;

const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a ping is translated by its identifier")
            .forwards(IN, ask(out(), 4077), OUT, ask(public(), 4077))
            .forwards(OUT, reply(answer(), 4077), IN, reply(client(), 4077))
            .forwards(IN, ask(arriving(IN, SECOND, SERVER), 4078), OUT, ask(public(), 4078))
            .drops(OUT, arriving(OUT, SERVER, CLIENT).echo_reply(4078, 1), Drop::Policy)
            .drops(IN, out().echo_reply(4077, 2), Drop::NoFlow)
            .leaves(&[
                "icmp 10.0.1.10:4077 > 203.0.113.10 as 198.51.100.1:4077, established, 1+1",
                "icmp 10.0.1.11:4078 > 203.0.113.10 as 198.51.100.1:4078, unreplied, 1+0",
            ]),
        case("a low identifier is none of the range and becomes another")
            .world(forwarder_golden::world::World::default().ports(6000, 6000))
            .forwards(IN, ask(out(), 77), OUT, ask(public(), 6000))
            .forwards(OUT, reply(answer(), 6000), IN, reply(client(), 77))
            .leaves(&["icmp 10.0.1.10:77 > 203.0.113.10 as 198.51.100.1:6000, established, 1+1"]),
        case("a reply begins nothing, also with an identifier of zero, and spoils no other ping's checksum")
            .drops(IN, reply(out(), 0), Drop::NoFlow)
            .forwards(IN, ask(out(), 0), OUT, ask(public(), 6000))
            .forwards(IN, reply(out(), 0), OUT, reply(public(), 0))
            .world(forwarder_golden::world::World::default().ports(6000, 6000))
            .leaves(&["icmp 10.0.1.10 > 203.0.113.10 as 198.51.100.1:6000, unreplied, 2+0"]),
        case("a timestamp request is not forwarded").drops(IN, out().icmp(13, 0, 0), Drop::IcmpUnsupported),
        by_address(protocol::ESP, "ESP is translated by address", "50"),
        by_address(protocol::GRE, "GRE is translated by address", "47"),
        by_address(protocol::SCTP, "SCTP is translated by address", "132"),
        case("a second host cannot speak ESP with the same remote by the same public address")
            .forwards(IN, opaque(out()), OUT, opaque(public()))
            .answers(
                IN,
                opaque(arriving(IN, SECOND, SERVER)),
                Drop::NatExhausted,
                error_to(IN, SECOND).unreachable(13, &quoted(&opaque(arriving(IN, SECOND, SERVER)), 548)),
            )
            .leaves(&["50 10.0.1.10 > 203.0.113.10 as 198.51.100.1, unreplied, 1+0"]),
        pseudo(136, "UDP-Lite gets its checksum changed by the addresses", "136"),
        pseudo(33, "DCCP gets its checksum changed by the addresses", "33"),
    ];
    cases.extend(unusual());
    cases
}

fn unusual() -> [Case; 4] {
    let options = |packet: Packet| packet.options(&ROUTER_ALERT);
    [
        case("a packet with options passes through both ways")
            .forwards(IN, options(out()).tcp(4000, 80, SYN, 1), OUT, options(public()).tcp(4000, 80, SYN, 1))
            .forwards(IN, options(out()).udp(4000, 53), OUT, options(public()).udp(4000, 53))
            .forwards(OUT, options(answer()).udp(53, 4000), IN, options(client()).udp(53, 4000))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1",
                "tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0",
            ]),
        case("a datagram without a checksum stays without")
            .forwards(IN, bare(out(), 4000, 53), OUT, bare(public(), 4000, 53))
            .forwards(OUT, bare(answer(), 53, 4000), IN, bare(client(), 53, 4000))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1"]),
        case("padding behind the packet stays, and counts as bytes of the frame")
            .forwards(IN, out().udp(4000, 53).trailing(18), OUT, public().udp(4000, 53).trailing(18))
            .forwards(IN, out().udp(4000, 53).trailing(18), OUT, public().udp(4000, 53).trailing(18))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 2+0"]),
        case("class, identification, DF and TCP options are nobody's business")
            .forwards(IN, dressed(out()), OUT, dressed(public()))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0"]),
    ]
}

fn by_address(number: u8, sentence: &'static str, name: &str) -> Case {
    let packet = |base: Packet| base.protocol(number).payload(b"opaque to us");
    let line = format!("{name} 10.0.1.10 > 203.0.113.10 as 198.51.100.1, established, 2+1");
    case(sentence)
        .forwards(IN, packet(out()), OUT, packet(public()))
        .forwards(OUT, packet(answer()), IN, packet(client()))
        .forwards(IN, packet(out()), OUT, packet(public()))
        .leaves(&[line.leak()])
}

/// A protocol whose checksum covers the addresses, at offset 6. The checker does not know it, so the sum is made here.
fn pseudo(number: u8, sentence: &'static str, name: &str) -> Case {
    let packet = |base: Packet, source: &str, destination: &str| {
        let mut bytes = vec![0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0xca, 0xfe];
        let pseudo = [&v4(source)[..], &v4(destination), &[0, number, 0, bytes.len() as u8], &bytes].concat();
        let sum = pseudo.chunks(2).fold(0u32, |sum, word| sum + u32::from(word[0]) * 256 + u32::from(word[1]));
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        base.protocol(number).payload(&bytes)
    };
    let line = format!("{name} 10.0.1.10 > 203.0.113.10 as 198.51.100.1, established, 1+1");
    case(sentence)
        .forwards(IN, packet(out(), CLIENT, SERVER), OUT, packet(public(), PUBLIC, SERVER))
        .forwards(OUT, packet(answer(), SERVER, PUBLIC), IN, packet(client(), SERVER, CLIENT))
        .leaves(&[line.leak()])
}

fn ask(base: Packet, id: u16) -> Packet {
    base.echo_request(id, 1).payload_of(57)
}

fn reply(base: Packet, id: u16) -> Packet {
    base.echo_reply(id, 1).payload_of(57)
}

fn opaque(base: Packet) -> Packet {
    base.protocol(protocol::ESP).payload(&[1, 2, 3, 4, 0, 0, 0, 1, 9, 9])
}

fn bare(base: Packet, source: u16, destination: u16) -> Packet {
    base.udp(source, destination).without_checksum().payload_of(33)
}

fn dressed(base: Packet) -> Packet {
    let base = base.traffic_class(0xb8).id(0xbeef).df();
    base.tcp(4000, 80, SYN, 1).tcp_options(&[2, 4, 5, 180, 1, 3, 3, 7]).payload_of(5)
}

fn public() -> Packet {
    leaving(OUT, PUBLIC, SERVER)
}

fn answer() -> Packet {
    arriving(OUT, SERVER, PUBLIC)
}

fn client() -> Packet {
    leaving(IN, SERVER, CLIENT)
}
