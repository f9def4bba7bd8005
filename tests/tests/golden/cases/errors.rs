//! ICMP errors that others send about flows of ours: translated outside and inside, with their flow or nowhere.

use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, case, out, out6};
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OUT, PUBLIC, SECOND, SERVER, SERVER6, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::SYN;
use forwarder_kit::packet::{protocol, quote};

/// A router on the way to the server.
const ROUTER: &str = "192.0.9.1";
const ROUTER6: &str = "2001:db8:9999::1";

pub fn cases() -> Vec<Case> {
    let udp = |base: Packet| base.udp(4000, 53).payload_of(40);
    let tcp = |base: Packet| base.tcp(4000, 80, SYN, 7).payload_of(40);
    let echo = |base: Packet| base.echo_request(4000, 1).payload_of(40);
    let esp = |base: Packet| base.protocol(protocol::ESP).payload_of(40);
    let bare = |base: Packet| base.udp(4000, 53).without_checksum().payload_of(40);
    let optioned = |base: Packet| base.options(&[0x94, 4, 0, 0]).udp(4000, 53).payload_of(40);
    let mut cases = vec![
        from_outside("an error about UDP reaches the inside with the inside's packet in it", udp, 1500, UDP),
        from_outside("an error about TCP does", tcp, 1500, TCP),
        from_outside("an error about a ping does", echo, 1500, ICMP),
        from_outside(
            "an error about ESP does",
            esp,
            1500,
            "50 10.0.1.10 > 203.0.113.10 as 198.51.100.1, unreplied, 1+0",
        ),
        from_outside("an error about UDP without checksum does", bare, 1500, UDP),
        from_outside("an error about a packet with options does", optioned, 1500, UDP),
        from_outside("eight quoted bytes of UDP are enough", udp, 28, UDP),
        from_outside("eight quoted bytes of TCP are enough", tcp, 28, TCP),
        from_outside("a quotation that ends inside the TCP header is translated as far as it goes", tcp, HALF_SUM, TCP),
        from_outside("a quotation that ends right behind the TCP checksum has it translated", tcp, 38, TCP),
        from_outside("eight quoted bytes of a ping are enough", echo, 28, ICMP),
        from_inside("an error from a client about an answer leaves with the public address", CLIENT),
        from_inside("an error from a router inside speaks with the public address", SECOND),
    ];
    cases.extend(about_pings());
    cases.extend(about_nothing());
    cases.extend(ipv6());
    cases
}

const UDP: &str = "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0";
const TCP: &str = "tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0";
const ICMP: &str = "icmp 10.0.1.10:4000 > 203.0.113.10 as 198.51.100.1:4000, unreplied, 1+0";

/// A quotation that ends in the middle of the TCP checksum; half a checksum stays as it is.
const HALF_SUM: usize = 20 + 17;

/// A router outside quotes `bytes` of the packet as it left, in each kind of error.
fn from_outside(sentence: &'static str, packet: impl Fn(Packet) -> Packet, bytes: usize, left: &'static str) -> Case {
    let left_as = packet(leaving(OUT, PUBLIC, SERVER)).build();
    let was = packet(Packet::between(CLIENT, SERVER).ttl(63)).build();
    let (quoted, mut restored) = (quote(&left_as, bytes), quote(&was, bytes).to_vec());
    if bytes == HALF_SUM {
        restored[bytes - 1] = quoted[bytes - 1];
    }
    let restored = &restored[..];
    let (outer, inner) = (arriving(OUT, ROUTER, PUBLIC), leaving(IN, ROUTER, CLIENT));
    case(sentence)
        .forwards(IN, packet(out()), OUT, packet(leaving(OUT, PUBLIC, SERVER)))
        .forwards(OUT, outer.clone().time_exceeded(quoted), IN, inner.clone().time_exceeded(restored))
        .forwards(OUT, outer.clone().too_big(1280, quoted), IN, inner.clone().too_big(1280, restored))
        .forwards(OUT, outer.clone().unreachable(3, quoted), IN, inner.clone().unreachable(3, restored))
        .forwards(OUT, outer.icmp(12, 0, 1 << 24).payload(quoted), IN, inner.icmp(12, 0, 1 << 24).payload(restored))
        .leaves(&[left])
}

/// `speaker` inside quotes the server's answer as it came to the client.
fn from_inside(sentence: &'static str, speaker: &str) -> Case {
    let come = leaving(IN, SERVER, CLIENT).udp(53, 4000).payload_of(9);
    let sent = Packet::between(SERVER, PUBLIC).ttl(63).udp(53, 4000).payload_of(9);
    case(sentence)
        .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
        .forwards(OUT, arriving(OUT, SERVER, PUBLIC).udp(53, 4000).payload_of(9), IN, come.clone())
        .forwards(
            IN,
            arriving(IN, speaker, SERVER).unreachable(3, quote(&come.build(), 1500)),
            OUT,
            leaving(OUT, PUBLIC, SERVER).unreachable(3, quote(&sent.build(), 1500)),
        )
        .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1"])
}

fn about_pings() -> [Case; 1] {
    let come = leaving(IN, SERVER, CLIENT).echo_reply(77, 1).payload_of(9);
    let sent = Packet::between(SERVER, PUBLIC).ttl(63).echo_reply(6000, 1).payload_of(9);
    [case("an error about a ping's answer, whose identifier changed, leaves as it was outside")
        .world(forwarder_golden::world::World::default().ports(6000, 6000))
        .forwards(IN, out().echo_request(77, 1), OUT, leaving(OUT, PUBLIC, SERVER).echo_request(6000, 1))
        .forwards(OUT, arriving(OUT, SERVER, PUBLIC).echo_reply(6000, 1).payload_of(9), IN, come.clone())
        .forwards(
            IN,
            out().unreachable(3, quote(&come.build(), 1500)),
            OUT,
            leaving(OUT, PUBLIC, SERVER).unreachable(3, quote(&sent.build(), 1500)),
        )
        .leaves(&["icmp 10.0.1.10:77 > 203.0.113.10 as 198.51.100.1:6000, established, 1+1"])]
}

/// Errors that belong to no flow, or may not go with theirs.
fn about_nothing() -> [Case; 6] {
    let sent = leaving(OUT, PUBLIC, SERVER).udp(4000, 53).payload_of(1600).build();
    let begun = |sentence| {
        case(sentence).forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53)).leaves(&[UDP])
    };
    let stray = Packet::between(SERVER, CLIENT).udp(53, 4000).build();
    [
        case("an error about no flow is the host's when it is addressed to it, and nobody's otherwise")
            .passes(OUT, arriving(OUT, ROUTER, PUBLIC).time_exceeded(quote(&sent, 28)), Pass::Host)
            .drops(IN, out().unreachable(3, quote(&stray, 28)), Drop::IcmpUnrelated),
        begun("an error that quotes too little is about no flow")
            .passes(OUT, arriving(OUT, ROUTER, PUBLIC).time_exceeded(quote(&sent, 27)), Pass::Host)
            .passes(OUT, arriving(OUT, ROUTER, PUBLIC).time_exceeded(quote(&sent, 12)), Pass::Host)
            .passes(OUT, arriving(OUT, ROUTER, PUBLIC).time_exceeded(&[]), Pass::Host),
        begun("an error with its last hop used up is not answered").drops(
            OUT,
            arriving(OUT, ROUTER, PUBLIC).ttl(1).time_exceeded(quote(&sent, 28)),
            Drop::TtlExceeded,
        ),
        begun("an error too large for its way is not answered").drops(
            OUT,
            arriving(OUT, ROUTER, PUBLIC).time_exceeded(quote(&sent, 1480)),
            Drop::TooBig,
        ),
        begun("an error about a flow goes only to who sent what it quotes")
            .drops(OUT, arriving(OUT, ROUTER, SECOND).time_exceeded(quote(&sent, 28)), Drop::IcmpUnrelated)
            .passes(OUT, arriving(OUT, ROUTER, "198.51.100.255").time_exceeded(quote(&sent, 28)), Pass::Host),
        case("an error from outside does not speak for a flow that the inside sees otherwise")
            .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
            .drops(
                OUT,
                arriving(OUT, ROUTER, CLIENT)
                    .time_exceeded(quote(&Packet::between(CLIENT, SERVER).udp(4000, 53).build(), 28)),
                Drop::IcmpUnrelated,
            )
            .leaves(&[UDP]),
    ]
}

fn ipv6() -> [Case; 3] {
    let sent = leaving(OUT, CLIENT6, SERVER6).udp(4000, 53).payload_of(40).build();
    let (outer, inner) = (arriving(OUT, ROUTER6, CLIENT6), leaving(IN, ROUTER6, CLIENT6));
    let ping = leaving(OUT, CLIENT6, SERVER6).echo_request(5, 1).build();
    let about = |base: &Packet, quoted: &[u8]| base.clone().too_big(1280, quoted);
    let piece = forwarder_kit::packet::fragment(
        &leaving(OUT, CLIENT6, SERVER6).udp(4000, 53).payload_of(3000).build(),
        1280,
        7,
    );
    [
        case("an ICMPv6 error goes with its flow, untouched but for the hop limit")
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .forwards(IN, out6().echo_request(5, 1), OUT, leaving(OUT, CLIENT6, SERVER6).echo_request(5, 1))
            .forwards(OUT, about(&outer, quote(&sent, 1232)), IN, about(&inner, quote(&sent, 1232)))
            .forwards(OUT, about(&outer, quote(&ping, 1232)), IN, about(&inner, quote(&ping, 1232)))
            .forwards(OUT, about(&outer, quote(&piece[0], 600)), IN, about(&inner, quote(&piece[0], 600)))
            .drops(OUT, outer.clone().ttl(1).too_big(1280, quote(&sent, 1232)), Drop::TtlExceeded)
            .leaves(&[
                "icmp [2001:db8:1::10]:5 > 2001:db8:3::10, unreplied, 1+0",
                "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0",
            ]),
        case("an ICMPv6 error about no flow is nobody's, or the host's when it is addressed to it")
            .drops(OUT, outer.clone().time_exceeded(quote(&sent, 1232)), Drop::IcmpUnrelated)
            .drops(OUT, outer.time_exceeded(quote(&piece[1], 200)), Drop::IcmpUnrelated)
            .passes(OUT, arriving(OUT, ROUTER6, "2001:db8:2::1").unreachable(0, quote(&sent, 1232)), Pass::Host),
        case("an ICMPv6 error about a flow goes only to who sent what it quotes")
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .drops(OUT, arriving(OUT, ROUTER6, "2001:db8:1::11").too_big(1280, quote(&sent, 1232)), Drop::IcmpUnrelated)
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"]),
    ]
}
