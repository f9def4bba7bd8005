//! Who may begin a flow, and what can happen to the table of them.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, Change, case, error_to, out, out6, quoted};
use forwarder_golden::world::{CAPACITY, CLIENT, CLIENT6, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving, leaving};
use forwarder_kit::packet::flag::{ACK, SYN};

pub fn cases() -> Vec<Case> {
    let inward = arriving(OUT, SERVER, CLIENT).udp(53, 4000);
    let denied = World::default().with(|control| control.inside_allowed = 0);
    let open = World::default().with(|control| control.outside_allowed = 1);
    vec![
        case("the outside begins nothing").drops(OUT, inward.clone(), Drop::Policy),
        case("the outside begins a flow where it may, and the inside answers untranslated")
            .world(open)
            .forwards(OUT, inward.clone(), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, CLIENT, SERVER).udp(4000, 53))
            .leaves(&["udp 203.0.113.10:53 > 10.0.1.10:4000, established, 1+1"]),
        case("the inside begins nothing where it may not")
            .world(denied)
            .drops(IN, out().udp(4000, 53), Drop::Policy)
            .drops(IN, out6().udp(4000, 53), Drop::Policy),
        case("a stricter firewall ends the flows that it would not have let begin, from either end")
            .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .control(|control| control.inside_allowed = 0)
            .drops(IN, out().udp(4000, 53), Drop::Policy)
            .drops(OUT, arriving(OUT, SERVER6, CLIENT6).udp(53, 4000), Drop::Policy),
        case("answers need no permission of their own when the epoch moves")
            .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
            .control(|_| {})
            .forwards(OUT, arriving(OUT, SERVER, PUBLIC).udp(53, 4000), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1"]),
        case("a connection that lost one entry is made anew by its next change")
            .forwards(IN, out().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, 1))
            .change(Change::ForgetResponders)
            .forwards(IN, out().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, 1))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("a connection that lost one entry ends with what cannot begin one")
            .forwards(IN, out().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, 1))
            .change(Change::ForgetResponders)
            .drops(IN, out().tcp(4000, 80, ACK, 1), Drop::NoFlow),
        full(),
        full6(),
    ]
}

fn full() -> Case {
    let packet = |port| out().udp(port, 53);
    let answer = error_to(IN, CLIENT).unreachable(13, &quoted(&packet(4999), 548));
    let filled = (4000..4000 + CAPACITY as u16 / 2).fold(case("a full table refuses new flows"), |case, port| {
        case.forwards(IN, packet(port), OUT, leaving(OUT, PUBLIC, SERVER).udp(port, 53))
    });
    filled
        .answers(IN, packet(4999), Drop::TableFull, answer)
        .forwards(IN, packet(4003), OUT, leaving(OUT, PUBLIC, SERVER).udp(4003, 53))
        .leaves(&[
            "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0",
            "udp 10.0.1.10:4001 > 203.0.113.10:53 as 198.51.100.1:4001, unreplied, 1+0",
            "udp 10.0.1.10:4002 > 203.0.113.10:53 as 198.51.100.1:4002, unreplied, 1+0",
            "udp 10.0.1.10:4003 > 203.0.113.10:53 as 198.51.100.1:4003, unreplied, 2+0",
            "udp 10.0.1.10:4004 > 203.0.113.10:53 as 198.51.100.1:4004, unreplied, 1+0",
            "udp 10.0.1.10:4005 > 203.0.113.10:53 as 198.51.100.1:4005, unreplied, 1+0",
            "udp 10.0.1.10:4006 > 203.0.113.10:53 as 198.51.100.1:4006, unreplied, 1+0",
            "udp 10.0.1.10:4007 > 203.0.113.10:53 as 198.51.100.1:4007, unreplied, 1+0",
        ])
}

fn full6() -> Case {
    let packet = |port| out6().udp(port, 53);
    let answer = error_to(IN, CLIENT6).unreachable(1, &quoted(&packet(4999), 1232));
    let filled = (4000..4000 + CAPACITY as u16 / 2).fold(case("a full IPv6 table refuses new flows"), |case, port| {
        case.forwards(IN, packet(port), OUT, leaving(OUT, CLIENT6, SERVER6).udp(port, 53))
    });
    filled
        .answers(IN, packet(4999), Drop::TableFull, answer)
        .control(|control| control.inside_allowed = 0)
        .each((4000..4000 + CAPACITY as u16 / 2).map(|port| (IN, packet(port), Drop::Policy)))
}
