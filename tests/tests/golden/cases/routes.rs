//! What the kernel's routes say of a packet, and what their change does to a flow.

use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, Change, case, error_to, out, out6, quoted};
use forwarder_golden::world::{ARM, CLIENT, CLIENT6, IN, OTHER, OUT, PUBLIC, SERVER, SERVER6, Way, arriving, leaving};
use forwarder_kit::Packet;

const QUOTE4: usize = 576 - 20 - 8;

pub fn cases() -> Vec<Case> {
    let to = |destination: &str| arriving(IN, CLIENT, destination).udp(4000, 53);
    let to6 = |destination: &str| arriving(IN, CLIENT6, destination).udp(4000, 53);
    let refused = |packet: &Packet, code| error_to(IN, CLIENT).unreachable(code, &quoted(packet, QUOTE4));
    let refused6 = |packet: &Packet, code| error_to(IN, CLIENT6).unreachable(code, &quoted(packet, 1232));
    let (unreachable, prohibited) = (to("203.0.113.133"), to("203.0.113.137"));
    let (unreachable6, prohibited6) = (to6("2001:db8:81::1"), to6("2001:db8:82::1"));
    let mut cases = vec![
        case("a blackhole route swallows").drops(IN, to("203.0.113.129"), Drop::RouteBlackhole).drops(
            IN,
            to6("2001:db8:80::1"),
            Drop::RouteBlackhole,
        ),
        case("an unreachable route answers host unreachable")
            .answers(IN, unreachable.clone(), Drop::RouteUnreachable, refused(&unreachable, 1))
            .answers(IN, unreachable6.clone(), Drop::RouteUnreachable, refused6(&unreachable6, 3)),
        case("a prohibit route answers administratively prohibited")
            .answers(IN, prohibited.clone(), Drop::RouteProhibited, refused(&prohibited, 13))
            .answers(IN, prohibited6.clone(), Drop::RouteProhibited, refused6(&prohibited6, 1)),
        case("a frame waits whose next hop does not answer yet")
            .passes(IN, to("198.51.100.77"), Pass::Held)
            .passes(IN, to6("2001:db8:2::77"), Pass::Held)
            .drops(IN, to("198.51.100.77").payload_of(2048), Drop::NeighbourUnknown),
        case("the outside makes nobody wait").drops(OUT, arriving(OUT, SERVER, "10.0.1.77").udp(53, 53), Drop::Policy),
        case("a way out that is not served is the host's")
            .passes(IN, to("10.9.0.10"), Pass::Unserved)
            .passes(IN, to("10.9.0.77"), Pass::Unserved)
            .passes(IN, to6("2001:db8:9::10"), Pass::Unserved),
        case("without forwarding in the kernel there is none")
            .change(Change::Forwarding(IN, false))
            .drops(IN, to(SERVER), Drop::ForwardingDisabled)
            .drops(IN, to6(SERVER6), Drop::ForwardingDisabled)
            .change(Change::Forwarding(IN, true))
            .forwards(IN, to(SERVER), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
    ];
    cases.extend(changes());
    cases
}

const NARROWER: Change = Change::Route("203.0.113.0/27", Way::Via(OUT, 1300));
const LEFT: &str = "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 2+0";

/// A flow is there, then the routes change, then the epoch moves.
fn changes() -> [Case; 5] {
    let begun = |sentence| {
        case(sentence).forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53)).forwards(
            IN,
            out6().udp(4000, 53),
            OUT,
            leaving(OUT, CLIENT6, SERVER6).udp(4000, 53),
        )
    };
    let large = out().df().udp(4000, 53).payload_of(1400);
    let gone = leaving(OUT, PUBLIC, SERVER).df().udp(4000, 53).payload_of(1400);
    let narrow = error_to(IN, CLIENT).too_big(1300, &quoted(&large, QUOTE4));
    let no_route = error_to(IN, CLIENT).unreachable(0, &quoted(&out().udp(4000, 53), QUOTE4));
    let left6 = "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0";
    [
        begun("a flow keeps its way until the epoch moves, then asks for it")
            .change(NARROWER)
            .forwards(IN, large.clone(), OUT, gone)
            .control(|_| {})
            .answers(IN, large, Drop::TooBig, narrow)
            .leaves(&[LEFT, left6]),
        begun("a translated flow is never left to the host, an untranslated one is")
            .change(Change::Route("203.0.113.0/27", Way::Via(OTHER, 1500)))
            .change(Change::Route("2001:db8:3::/48", Way::Via(OTHER, 1500)))
            .control(|_| {})
            .answers(IN, out().udp(4000, 53), Drop::RouteUnreachable, no_route)
            .passes(IN, out6().udp(4000, 53), Pass::Unserved)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0", left6]),
        begun("a flow that now leaves on another side is made anew")
            .change(Change::Route("203.0.113.0/27", Way::Via(ARM, 1500)))
            .change(Change::Route("2001:db8:3::/48", Way::Via(ARM, 1500)))
            .control(|_| {})
            .forwards(IN, out().udp(4000, 53), ARM, leaving(ARM, PUBLIC, SERVER).udp(4000, 53))
            .forwards(IN, out6().udp(4000, 53), ARM, leaving(ARM, CLIENT6, SERVER6).udp(4000, 53))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0", left6]),
        begun("a blackhole that comes later swallows a known flow")
            .change(Change::Route("203.0.113.0/27", Way::Refused(forwarder_ebpf::tables::Fate::Blackhole)))
            .control(|_| {})
            .drops(IN, out().udp(4000, 53), Drop::RouteBlackhole)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0", left6]),
        begun("an answer asks for its way, whatever became of the request's")
            .control(|_| {})
            .forwards(OUT, arriving(OUT, SERVER, PUBLIC).udp(53, 4000), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1", left6]),
    ]
}
