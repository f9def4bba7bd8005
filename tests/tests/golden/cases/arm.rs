//! One interface that serves both sides: who is inside, the source address says.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, case, error_to, quoted};
use forwarder_golden::world::{ARM, ARM_PUBLIC, ARM_SERVER, GUEST, World, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::{ACK, RST, SYN};

const GUEST6: &str = "2001:db8:a00::10";
const SERVER6: &str = "2001:db8:b00::10";

pub fn cases() -> Vec<Case> {
    let expired = arriving(ARM, GUEST, ARM_SERVER).ttl(1).udp(4000, 33_434);
    let answer = error_to(ARM, GUEST).time_exceeded(&quoted(&expired, 548));
    vec![
        case("a flow leaves by the interface that it came by, translated, and so does its answer")
            .forwards(ARM, guest().tcp(4000, 80, SYN, 1), ARM, public().tcp(4000, 80, SYN, 1))
            .forwards(ARM, answer_to_us().tcp(80, 4000, SYN | ACK, 1), ARM, to_guest().tcp(80, 4000, SYN | ACK, 1))
            .forwards(ARM, guest().tcp(4000, 80, ACK, 1), ARM, public().tcp(4000, 80, ACK, 1))
            .leaves(&["tcp 172.31.0.10:4000 > 192.0.2.10:80 as 172.31.0.1:4000, established, 2+1"]),
        case("of both sides on one interface, only the inside opens a closed connection again")
            .forwards(ARM, guest().tcp(4000, 80, SYN, 1), ARM, public().tcp(4000, 80, SYN, 1))
            .forwards(ARM, answer_to_us().tcp(80, 4000, RST, 1), ARM, to_guest().tcp(80, 4000, RST, 1))
            .drops(ARM, answer_to_us().tcp(80, 4000, SYN, 1), Drop::Policy)
            .forwards(ARM, guest().tcp(4000, 80, SYN, 1), ARM, public().tcp(4000, 80, SYN, 1))
            .leaves(&["tcp 172.31.0.10:4000 > 192.0.2.10:80 as 172.31.0.1:4000, unreplied, 2+1"]),
        case("who no rule names is outside and may not begin a flow").drops(
            ARM,
            arriving(ARM, ARM_SERVER, GUEST).udp(53, 4000),
            Drop::Policy,
        ),
        case("a trace gets its answer by the same interface").answers(ARM, expired, Drop::TtlExceeded, answer),
        case("IPv6 of the own /56 is inside, the rest is not")
            .forwards(
                ARM,
                arriving(ARM, GUEST6, SERVER6).udp(4000, 53),
                ARM,
                leaving(ARM, GUEST6, SERVER6).udp(4000, 53),
            )
            .forwards(
                ARM,
                arriving(ARM, SERVER6, GUEST6).udp(53, 4000),
                ARM,
                leaving(ARM, SERVER6, GUEST6).udp(53, 4000),
            )
            .drops(ARM, arriving(ARM, SERVER6, GUEST6).udp(53, 4001), Drop::Policy)
            .leaves(&["udp [2001:db8:a00::10]:4000 > [2001:db8:b00::10]:53, established, 1+1"]),
        case("a packet from and to the same end is nothing that begins a flow")
            .world(World::default().without_nat().with(|control| control.outside_allowed = 1))
            .drops(ARM, arriving(ARM, GUEST, GUEST).udp(7, 7), Drop::NoFlow),
    ]
}

fn guest() -> Packet {
    arriving(ARM, GUEST, ARM_SERVER)
}

fn public() -> Packet {
    leaving(ARM, ARM_PUBLIC, ARM_SERVER)
}

fn answer_to_us() -> Packet {
    arriving(ARM, ARM_SERVER, ARM_PUBLIC)
}

fn to_guest() -> Packet {
    leaving(ARM, ARM_SERVER, GUEST)
}
