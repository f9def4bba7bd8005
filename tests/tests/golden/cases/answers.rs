//! ICMP errors that we send: what they say, what they quote, and when there are none.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, case, error_to, out, out6, quoted};
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::fragment;

/// Behind a route with an MTU of 1,400.
const NARROW: &str = "203.0.113.70";
const NARROW6: &str = "2001:db8:40::10";
/// Most bytes that an error quotes.
const QUOTE4: usize = 576 - 20 - 8;
const QUOTE6: usize = 1280 - 40 - 8;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        expires("a trace's packet gets its time exceeded", out().ttl(1).udp(4000, 33_434).payload_of(5)),
        expires("so does a hop limit of zero", out().ttl(0).udp(4000, 33_434)),
        expires("so does one with options", out().ttl(1).options(&[0x94, 4, 0, 0]).udp(4000, 33_434)),
        expires("so does a padded one, without the padding", out().ttl(1).udp(4000, 33_434).trailing(10)),
        expires("a long one is quoted in part", out().ttl(1).udp(4000, 33_434).payload_of(1000)),
        case("time exceeded over IPv6").answers(
            IN,
            out6().ttl(1).udp(4000, 33_434).payload_of(1400),
            Drop::TtlExceeded,
            error_to(IN, CLIENT6).time_exceeded(&quoted(&out6().ttl(1).udp(4000, 33_434).payload_of(1400), QUOTE6)),
        ),
        known_flow_expires(),
    ];
    cases.extend(too_big());
    cases.extend(silence());
    cases
}

fn expires(sentence: &'static str, packet: Packet) -> Case {
    let answer = error_to(IN, CLIENT).time_exceeded(&quoted(&packet, QUOTE4));
    case(sentence).answers(IN, packet, Drop::TtlExceeded, answer)
}

fn known_flow_expires() -> Case {
    let back = arriving(OUT, SERVER, PUBLIC).ttl(1).udp(53, 4000).payload_of(50);
    let answer = error_to(OUT, SERVER).time_exceeded(&quoted(&back, QUOTE4));
    case("a known flow's packet expires too, and what is quoted is what came")
        .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
        .answers(OUT, back, Drop::TtlExceeded, answer)
        .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"])
}

fn too_big() -> [Case; 4] {
    let wide = |length| arriving(IN, CLIENT, NARROW).udp(4000, 53).payload_of(length);
    let wide6 = |length| arriving(IN, CLIENT6, NARROW6).udp(4000, 53).payload_of(length);
    let says = |packet: &Packet| error_to(IN, CLIENT).too_big(1400, &quoted(packet, QUOTE4));
    let says6 = |packet: &Packet| error_to(IN, CLIENT6).too_big(1400, &quoted(packet, QUOTE6));
    let fits = leaving(OUT, PUBLIC, NARROW).udp(4000, 53).payload_of(1372);
    let fits6 = leaving(OUT, CLIENT6, NARROW6).udp(4000, 53).payload_of(1352);
    [
        case("a packet larger than its way is answered with the MTU, with DF or without")
            .answers(IN, wide(1373).df(), Drop::TooBig, says(&wide(1373).df()))
            .answers(IN, wide(1373), Drop::FragmentationNeeded, says(&wide(1373))),
        case("what just fits passes, and one byte more of the same flow does not")
            .forwards(IN, wide(1372), OUT, fits)
            .answers(IN, wide(1373).df(), Drop::TooBig, says(&wide(1373).df()))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.70:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("packet too big over IPv6")
            .answers(IN, wide6(1353), Drop::TooBig, says6(&wide6(1353)))
            .forwards(IN, wide6(1352), OUT, fits6)
            .answers(IN, wide6(1353), Drop::TooBig, says6(&wide6(1353)))
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:40::10]:53, unreplied, 1+0"]),
        case("padding does not make a packet large")
            .forwards(
                IN,
                wide(1372).trailing(20),
                OUT,
                leaving(OUT, PUBLIC, NARROW).udp(4000, 53).payload_of(1372).trailing(20),
            )
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.70:53 as 198.51.100.1:4000, unreplied, 1+0"]),
    ]
}

/// Where RFC 1812 and RFC 4443 want no error.
fn silence() -> [Case; 4] {
    let later = |base: Packet| fragment(&base.ttl(1).id(4).udp(4000, 53).payload_of(3000).build(), 1400, 4);
    let expired = out().ttl(1).udp(4000, 53);
    let answer = || error_to(IN, CLIENT).time_exceeded(&quoted(&out().ttl(1).udp(4000, 53), QUOTE4));
    [
        case("a later fragment is not answered")
            .forwards_frame(
                IN,
                fragment(&out().id(4).udp(4000, 53).payload_of(3000).build(), 1400, 4)[0].clone(),
                OUT,
                fragment(&leaving(OUT, PUBLIC, SERVER).id(4).udp(4000, 53).payload_of(3000).build(), 1400, 4)[0]
                    .clone(),
            )
            .drops_frame(IN, later(out())[1].clone(), Drop::TtlExceeded)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("an interface without an address does not answer")
            .world(World::default().iface(IN, |config| (config.address4, config.address6) = ([0; 4], [0; 16])))
            .drops(IN, expired.clone(), Drop::TtlExceeded)
            .drops(IN, out6().ttl(1).udp(4000, 53), Drop::TtlExceeded),
        case("errors are sent at a bounded rate")
            .control(|control| (control.icmp_per_second, control.ticks_per_second) = (2, 0))
            .answers(IN, expired.clone(), Drop::TtlExceeded, answer())
            .control(|control| control.ticks_per_second = u32::MAX)
            .answers(IN, expired.clone(), Drop::TtlExceeded, answer())
            .drops(IN, expired.clone(), Drop::TtlExceeded)
            .control(|control| control.ticks_per_second = 0)
            .answers(IN, expired, Drop::TtlExceeded, answer()),
        case("the outside is not told that it may not").drops(
            OUT,
            arriving(OUT, SERVER6, CLIENT6).ttl(1).udp(53, 4000),
            Drop::Policy,
        ),
    ]
}
