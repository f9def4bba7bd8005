//! Source NAT: which address and port a flow gets, and what happens when there is none.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, case, error_to, out, quoted};
use forwarder_golden::world::{CLIENT, IN, OUT, PUBLIC, SECOND, SERVER, World, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::{RST, SYN};

pub fn cases() -> Vec<Case> {
    vec![
        case("a request leaves with the public address and its own port, and the answer comes back")
            .forwards(IN, out().udp(4000, 53).payload(b"?"), OUT, public().udp(4000, 53).payload(b"?"))
            .forwards(OUT, answer(4000).payload(b"!!"), IN, client().udp(53, 4000).payload(b"!!"))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1"]),
        case("a second request makes it a stream")
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
            .forwards(OUT, answer(4000), IN, client().udp(53, 4000))
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established stream, 3+1"]),
        case("a port that is taken towards the same remote becomes another of the range, and both get their answers")
            .world(World::default().ports(4000, 4001))
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
            .forwards(IN, second().udp(4000, 53), OUT, public().udp(4001, 53))
            .forwards(OUT, answer(4001), IN, leaving(IN, SERVER, SECOND).udp(53, 4000))
            .forwards(OUT, answer(4000), IN, client().udp(53, 4000))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1",
                "udp 10.0.1.11:4000 > 203.0.113.10:53 as 198.51.100.1:4001, established, 1+1",
            ]),
        case("one public port serves several remotes at once")
            .world(World::default().ports(4000, 4000))
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
            .forwards(IN, second().udp(4000, 54), OUT, public().udp(4000, 54))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0",
                "udp 10.0.1.11:4000 > 203.0.113.10:54 as 198.51.100.1:4000, unreplied, 1+0",
            ]),
        case("an own port outside of the range is not kept")
            .world(World::default().ports(6000, 6000))
            .forwards(IN, out().udp(4000, 53), OUT, public().udp(6000, 53))
            .forwards(OUT, answer(6000), IN, client().udp(53, 4000))
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:6000, established, 1+1"]),
        case("a port that the host listens on is left to it")
            .world(World::default().ports(4000, 4001).host_port(4000))
            .forwards(IN, out().tcp(4000, 80, SYN, 7), OUT, public().tcp(4001, 80, SYN, 7))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4001, unreplied, 1+0"]),
        case("an exempt destination sees the inside address")
            .world(World::default().without_nat().exempt("10.0.1.0/24", "203.0.113.0/24").translate(
                "10.0.1.0/24",
                "0.0.0.0/0",
                &[PUBLIC],
            ))
            .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, CLIENT, SERVER).udp(4000, 53))
            .forwards(OUT, arriving(OUT, SERVER, CLIENT).udp(53, 4000), IN, client().udp(53, 4000))
            .forwards(IN, to_other().udp(4000, 53), OUT, leaving(OUT, PUBLIC, "192.0.3.1").udp(4000, 53))
            .leaves(&[
                "udp 10.0.1.10:4000 > 192.0.3.1:53 as 198.51.100.1:4000, unreplied, 1+0",
                "udp 10.0.1.10:4000 > 203.0.113.10:53, established, 1+1",
            ]),
        case("without a rule nothing is translated")
            .world(World::default().without_nat())
            .forwards(IN, out().tcp(4000, 80, SYN, 7), OUT, leaving(OUT, CLIENT, SERVER).tcp(4000, 80, SYN, 7))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80, unreplied, 1+0"]),
        case("a host keeps its address of the pool, another host may have another")
            .world(World::default().without_nat().translate(
                "10.0.0.0/8",
                "0.0.0.0/0",
                &["198.51.100.5", "198.51.100.6"],
            ))
            .forwards(IN, out().udp(4000, 53), OUT, pool(5).udp(4000, 53))
            .forwards(IN, out().udp(4000, 54), OUT, pool(5).udp(4000, 54))
            .forwards(IN, second().udp(4000, 53), OUT, pool(6).udp(4000, 53))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.5:4000, unreplied, 1+0",
                "udp 10.0.1.10:4000 > 203.0.113.10:54 as 198.51.100.5:4000, unreplied, 1+0",
                "udp 10.0.1.11:4000 > 203.0.113.10:53 as 198.51.100.6:4000, unreplied, 1+0",
            ]),
        exhausted(),
        reclaimed(),
    ]
}

fn exhausted() -> Case {
    let refused = second().udp(4000, 53).payload_of(600);
    let answer = error_to(IN, SECOND).unreachable(13, &quoted(&refused, 548));
    case("when every port towards a remote is taken, the next flow is refused and its sender told")
        .world(World::default().ports(4000, 4000))
        .forwards(IN, out().udp(4000, 53), OUT, public().udp(4000, 53))
        .answers(IN, refused, Drop::NatExhausted, answer)
        .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"])
}

fn reclaimed() -> Case {
    case("a closing connection gives up its port when all are taken")
        .world(World::default().ports(4000, 4000))
        .forwards(IN, out().tcp(4000, 80, SYN, 7), OUT, public().tcp(4000, 80, SYN, 7))
        .forwards(OUT, arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, RST, 0), IN, client().tcp(80, 4000, RST, 0))
        .forwards(IN, second().tcp(4000, 80, SYN, 9), OUT, public().tcp(4000, 80, SYN, 9))
        .leaves(&["tcp 10.0.1.11:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0"])
}

fn second() -> Packet {
    arriving(IN, SECOND, SERVER)
}

fn to_other() -> Packet {
    arriving(IN, CLIENT, "192.0.3.1")
}

fn public() -> Packet {
    leaving(OUT, PUBLIC, SERVER)
}

fn pool(last: u8) -> Packet {
    leaving(OUT, &format!("198.51.100.{last}"), SERVER)
}

fn answer(port: u16) -> Packet {
    arriving(OUT, SERVER, PUBLIC).udp(53, port)
}

fn client() -> Packet {
    leaving(IN, SERVER, CLIENT)
}
