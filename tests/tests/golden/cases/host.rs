//! What is not ours to forward, and what nobody should.

use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, case, out, out6};
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OTHER, OUT, PUBLIC, SERVER, SERVER6, arriving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::SYN;
use forwarder_kit::packet::protocol;

pub fn cases() -> Vec<Case> {
    let arp = edited(&arriving(IN, CLIENT, "10.0.1.1"), |frame| frame[12..14].copy_from_slice(&[8, 6]));
    let vlan = edited(&out().udp(1, 2), |frame| frame[12..14].copy_from_slice(&[0x81, 0]));
    let broadcast = out().macs([2; 6], [0xff; 6]).udp(1, 2);
    let mut cases = vec![
        case("what is not IP is the host's").passes_frame(IN, arp, Pass::NotIp).passes_frame(IN, vlan, Pass::NotIp),
        case("a frame for another station is not ours").passes(IN, broadcast, Pass::NotToUs).passes(
            IN,
            out().macs([2; 6], [2; 6]).udp(1, 2),
            Pass::NotToUs,
        ),
        case("what is for the host is the host's")
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").tcp(4000, 22, SYN, 1), Pass::Host)
            .passes(IN, arriving(IN, CLIENT, PUBLIC).udp(4000, 53), Pass::Host)
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").echo_request(1, 1), Pass::Host)
            .passes(OUT, arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, SYN, 1), Pass::Host)
            .passes(OUT, arriving(OUT, SERVER, PUBLIC).ttl(1).udp(4000, 33_434), Pass::Host)
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").options(&[1; 4]).icmp(13, 0, 0), Pass::Host)
            .passes(IN, arriving(IN, CLIENT6, "2001:db8:1::1").udp(4000, 53), Pass::Host)
            .passes(OUT, arriving(OUT, SERVER6, "2001:db8:2::1").echo_request(1, 1), Pass::Host),
        case("groups and everybody are the host's")
            .passes(IN, arriving(IN, CLIENT, "224.0.0.251").udp(5353, 5353), Pass::Multicast)
            .passes(IN, arriving(IN, CLIENT, "255.255.255.255").udp(68, 67), Pass::Multicast)
            .passes(IN, arriving(IN, "0.0.0.0", "255.255.255.255").udp(68, 67), Pass::Multicast)
            .passes(IN, arriving(IN, CLIENT, "10.0.1.255").udp(137, 137), Pass::Host)
            .passes(IN, arriving(IN, CLIENT6, "ff02::fb").udp(5353, 5353), Pass::Multicast),
        case("link-local IPv6 and neighbour discovery are the host's")
            .passes(IN, arriving(IN, "fe80::10", "fe80::1").udp(1, 2), Pass::LinkLocal)
            .passes(IN, arriving(IN, CLIENT6, "fe80::1").tcp(1, 2, SYN, 1), Pass::LinkLocal)
            .passes(IN, arriving(IN, "fe80::10", SERVER6).tcp(1, 2, SYN, 1), Pass::LinkLocal)
            .passes(IN, arriving(IN, CLIENT6, "2001:db8:1::1").icmp(135, 0, 0).payload_of(16), Pass::LinkLocal)
            .passes(IN, out6().icmp(136, 0, 0).payload_of(16), Pass::LinkLocal),
        case("an interface that is not served is the host's").passes(
            OTHER,
            arriving(OTHER, "10.9.0.10", SERVER).udp(1, 2),
            Pass::Unserved,
        ),
        case("addresses that are on no wire are dropped")
            .drops(IN, arriving(IN, "127.0.0.1", SERVER).udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, CLIENT, "127.0.0.1").udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, "0.1.2.3", SERVER).udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, "224.0.0.1", SERVER).udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, "255.255.255.255", SERVER).tcp(1, 2, SYN, 1), Drop::Martian)
            .drops(IN, arriving(IN, "::1", SERVER6).udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, CLIENT6, "::1").udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, "::", SERVER6).udp(1, 2), Drop::Martian)
            .drops(IN, arriving(IN, "ff02::1", SERVER6).udp(1, 2), Drop::Martian),
    ];
    cases.extend(malformed());
    cases
}

fn malformed() -> [Case; 3] {
    let udp = out().udp(4000, 53).payload_of(20);
    let with = |at: usize, byte: u8| edited(&udp, |frame| frame[at] = byte);
    let short = |packet: &Packet, length: usize| edited(packet, |frame| frame.truncate(length));
    let udp6 = out6().udp(4000, 53).payload_of(20);
    let raw = |number, length| out().protocol(number).payload_of(length);
    let raw6 = |number, length| out6().protocol(number).payload_of(length);
    let no_transport = |sentence, raw: &dyn Fn(u8, usize) -> Packet, icmp| {
        case(sentence)
            .drops(IN, raw(protocol::UDP, 7), Drop::Malformed)
            .drops(IN, raw(protocol::TCP, 19), Drop::Malformed)
            .drops(IN, raw(icmp, 7), Drop::Malformed)
            .drops(IN, raw(protocol::UDP, 0).trailing(40), Drop::Malformed)
            .drops(IN, raw(protocol::TCP, 19).trailing(40), Drop::Malformed)
            .drops(IN, raw(icmp, 7).trailing(40), Drop::Malformed)
    };
    [
        case("headers that do not fit are dropped")
            .drops_frame(IN, short(&udp, 14), Drop::Malformed)
            .drops_frame(IN, short(&udp, 33), Drop::Malformed)
            .drops_frame(IN, short(&udp, 61), Drop::Malformed)
            .drops_frame(IN, with(14, 0x55), Drop::Malformed)
            .drops_frame(IN, with(14, 0x44), Drop::Malformed)
            .drops_frame(IN, with(14, 0x4f), Drop::Malformed)
            .drops_frame(IN, with(17, 19), Drop::Malformed)
            .drops_frame(IN, with(16, 0xff), Drop::Malformed)
            .drops_frame(IN, short(&udp6, 53), Drop::Malformed)
            .drops_frame(IN, short(&udp6, 81), Drop::Malformed)
            .drops_frame(IN, edited(&udp6, |frame| frame[14] = 0x45), Drop::Malformed)
            .drops_frame(IN, edited(&out6().extension(60, &[]), |frame| frame[55] = 9), Drop::Malformed),
        no_transport("transport headers that do not fit are dropped", &raw, protocol::ICMP),
        no_transport("transport headers that do not fit are dropped in IPv6", &raw6, protocol::ICMPV6),
    ]
}

fn edited(packet: &Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = packet.build();
    edit(&mut frame);
    frame
}
