//! Rules: what they look at, what becomes of those they refuse, and what a new policy does to live flows.

use forwarder_ebpf::abi::firewall::{RuleAction, switch};
use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, Change, case, error_to, out, out6, quoted};
use forwarder_golden::world::{
    ARM, ARM_PUBLIC, ARM_SERVER, CLIENT, CLIENT6, GUEST, IN, OTHER, OUT, PUBLIC, SECOND, SERVER, SERVER6, World,
    arriving, leaving,
};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::{ACK, FIN, PSH, RST, SYN, URG};
use forwarder_kit::packet::fragment;

/// A world with these rules.
fn rules(text: &str) -> World {
    World::default().rules(text)
}

fn sent(port: u16) -> Packet {
    leaving(OUT, PUBLIC, SERVER).udp(port, 53)
}

pub fn cases() -> Vec<Case> {
    [matching(), refusing(), judging(), host(), spoofing(), flags()].into_iter().flatten().collect()
}

fn matching() -> Vec<Case> {
    const ADDRESSES: &str = r#"
        [[firewall.set]]
        name = "servers"
        prefixes = ["203.0.113.0/26", "2001:db8:3::/64"]
        [[firewall.rule]]
        action = "allow"
        source = ["10.0.1.10", "2001:db8:1::10"]
        destination = ["@servers", "!203.0.113.11"]
        protocol = "udp"
        destination_ports = ["53", "5000-5010"]
        [[firewall.rule]]
        action = "deny"
    "#;
    const PLACES: &str = r#"
        [[firewall.rule]]
        action = "deny"
        in = "in0"
        out = "outside"
        protocol = "udp"
        source_ports = ["4000"]
        [[firewall.rule]]
        action = "allow"
        in = "outside"
        out = "in0"
        protocol = "icmp"
        icmp = ["echo-request"]
    "#;
    let echo = arriving(OUT, SERVER, CLIENT).echo_request(7, 1);
    vec![
        case("addresses, sets, negation and ports decide, in both families")
            .world(rules(ADDRESSES))
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .forwards(IN, out().udp(4000, 5010), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 5010))
            .forwards(IN, out6().udp(4000, 5000), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 5000))
            .each([
                (IN, out().udp(4000, 5011), Drop::Policy),
                (IN, out().tcp(4000, 53, SYN, 1), Drop::Policy),
                (IN, arriving(IN, SECOND, SERVER).udp(4000, 53), Drop::Policy),
                (IN, arriving(IN, CLIENT, "203.0.113.11").udp(4000, 53), Drop::Policy),
                (IN, arriving(IN, CLIENT, "203.0.113.64").udp(4000, 53), Drop::Policy),
                (IN, arriving(IN, CLIENT6, "2001:db8:4::1").udp(4000, 53), Drop::Policy),
                (IN, out6().udp(4000, 54), Drop::Policy),
            ])
            .forwards(OUT, arriving(OUT, SERVER, PUBLIC).udp(53, 4000), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established, 1+1",
                "udp 10.0.1.10:4000 > 203.0.113.10:5010 as 198.51.100.1:4000, unreplied, 1+0",
                "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:5000, unreplied, 1+0",
            ]),
        case("interfaces, sides, source ports and ICMP types decide")
            .world(rules(PLACES))
            .drops(IN, out().udp(4000, 53), Drop::Policy)
            .forwards(IN, out().udp(4001, 53), OUT, sent(4001))
            .forwards(OUT, echo.clone(), IN, leaving(IN, SERVER, CLIENT).echo_request(7, 1))
            .drops(OUT, arriving(OUT, SERVER, CLIENT).udp(1, 2), Drop::Policy)
            .drops(OUT, arriving(OUT, SERVER6, CLIENT6).echo_request(7, 1), Drop::Policy)
            .leaves(&[
                "udp 10.0.1.10:4001 > 203.0.113.10:53 as 198.51.100.1:4001, unreplied, 1+0",
                "icmp 203.0.113.10:7 > 10.0.1.10, unreplied, 1+0",
            ]),
        case("a rule can ask whether a flow is translated")
            .world(rules("[[firewall.rule]]\naction = \"deny\"\ntranslated = true\n"))
            .drops(IN, out().udp(4000, 53), Drop::Policy)
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"]),
        case("on an interface for both sides the source says which it is")
            .world(rules("[[firewall.rule]]\naction = \"deny\"\nin = \"inside\"\nprotocol = \"udp\"\ndestination_ports = [\"53\"]\n"))
            .drops(ARM, arriving(ARM, GUEST, ARM_SERVER).udp(4000, 53), Drop::Policy)
            .forwards(
                ARM,
                arriving(ARM, GUEST, ARM_SERVER).udp(4000, 54),
                ARM,
                leaving(ARM, ARM_PUBLIC, ARM_SERVER).udp(4000, 54),
            )
            .leaves(&["udp 172.31.0.10:4000 > 192.0.2.10:54 as 172.31.0.1:4000, unreplied, 1+0"]),
        case("what leaves by an interface that is not served is judged packet by packet")
            .world(rules("[[firewall.rule]]\naction = \"deny\"\nprotocol = \"udp\"\ndestination_ports = [\"53\"]\n"))
            .drops(IN, arriving(IN, CLIENT, "10.9.0.10").udp(4000, 53), Drop::Policy)
            .passes(IN, arriving(IN, CLIENT, "10.9.0.10").udp(4000, 54), Pass::Unserved)
            .passes(OTHER, arriving(OTHER, "10.9.0.10", CLIENT).udp(4000, 53), Pass::Unserved),
    ]
}

fn refusing() -> Vec<Case> {
    let syn = out().tcp(4000, 80, SYN, 1000);
    let reset = |ingress, from: &str, to: &str| {
        let frame = arriving(ingress, to, from).build();
        let (mut ours, mut theirs) = ([0; 6], [0; 6]);
        ours.copy_from_slice(&frame[..6]);
        theirs.copy_from_slice(&frame[6..12]);
        Packet::between(from, to).macs(ours, theirs)
    };
    let datagram = out().udp(4000, 53).payload_of(9);
    let datagram6 = out6().udp(4000, 53).payload_of(9);
    let reject = rules("[[firewall.rule]]\naction = \"reject\"\nin = \"inside\"\n");
    vec![
        case("a rejected SYN is answered with a reset that acknowledges it")
            .world(reject.clone())
            .answers(
                IN,
                syn.clone(),
                Drop::Rejected,
                reset(IN, SERVER, CLIENT).df().tcp(80, 4000, RST | ACK, 0).acknowledges(1001, 0),
            )
            .answers(
                IN,
                out().options(&[1; 8]).tcp(4000, 80, SYN, u32::MAX).payload_of(20),
                Drop::Rejected,
                reset(IN, SERVER, CLIENT).df().tcp(80, 4000, RST | ACK, 0).acknowledges(20, 0),
            )
            .answers(
                IN,
                out6().tcp(4000, 80, SYN, 1000),
                Drop::Rejected,
                reset(IN, SERVER6, CLIENT6).tcp(80, 4000, RST | ACK, 0).acknowledges(1001, 0),
            ),
        case("a rejected segment with ACK gets a reset of what it acknowledges, and a reset gets none")
            .world(reject.clone())
            .answers(
                IN,
                out().tcp(4000, 80, ACK, 1).acknowledges(777, 1),
                Drop::Rejected,
                reset(IN, SERVER, CLIENT).df().tcp(80, 4000, RST, 777).acknowledges(0, 0),
            )
            .drops(IN, out().tcp(4000, 80, RST, 1), Drop::Rejected),
        case("anything else that is rejected is prohibited")
            .world(reject.clone())
            .answers(
                IN,
                datagram.clone(),
                Drop::Rejected,
                error_to(IN, CLIENT).unreachable(13, &quoted(&datagram, 548)),
            )
            .answers(
                IN,
                datagram6.clone(),
                Drop::Rejected,
                error_to(IN, CLIENT6).unreachable(1, &quoted(&datagram6, 1232)),
            ),
        case("rejections come out of the budget of errors")
            .world(reject)
            .control(|control| (control.icmp_per_second, control.ticks_per_second) = (2, 0))
            .answers(
                IN,
                datagram.clone(),
                Drop::Rejected,
                error_to(IN, CLIENT).unreachable(13, &quoted(&datagram, 548)),
            )
            .control(|control| control.ticks_per_second = u32::MAX)
            .answers(
                IN,
                syn.clone(),
                Drop::Rejected,
                reset(IN, SERVER, CLIENT).df().tcp(80, 4000, RST | ACK, 0).acknowledges(1001, 0),
            )
            .drops(IN, syn, Drop::Rejected)
            .drops(IN, datagram, Drop::Rejected),
        case("a default can reject as well")
            .world(World::default().with(|control| control.inside_allowed = 2))
            .answers(
                IN,
                out().tcp(4000, 80, SYN, 1000),
                Drop::Rejected,
                reset(IN, SERVER, CLIENT).df().tcp(80, 4000, RST | ACK, 0).acknowledges(1001, 0),
            ),
    ]
}

fn judging() -> Vec<Case> {
    const ONLY_TO_53: &str = "[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\nprotocol = \"udp\"\n\
        destination_ports = [\"53\"]\n[[firewall.rule]]\naction = \"deny\"\n";
    const NOTHING: &str = "[[firewall.rule]]\naction = \"deny\"\n";
    let answer = || arriving(OUT, SERVER, PUBLIC).udp(53, 4000);
    let answer6 = || arriving(OUT, SERVER6, CLIENT6).udp(53, 4000);
    let guest = || arriving(ARM, GUEST, ARM_SERVER).udp(4000, 54);
    let pieces = |payload| fragment(&out().udp(4000, 53).payload_of(payload).build(), 600, 9);
    let other = out().id(10).udp(4000, 54).payload_of(1000).build();
    let passed: Vec<_> = fragment(&sent(4000).payload_of(1000).build(), 600, 9);
    vec![
        case("live flows are judged again, from either end, and go on where they may")
            .world(rules(ONLY_TO_53))
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .control(|_| {})
            .forwards(OUT, answer(), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .forwards(OUT, answer6(), IN, leaving(IN, SERVER6, CLIENT6).udp(53, 4000))
            .leaves(&[
                "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, established stream, 2+1",
                "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, established, 1+1",
            ]),
        case("a flow that is no longer allowed ends with its next packet, from either end")
            .world(rules(ONLY_TO_53))
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .forwards(OUT, answer(), IN, leaving(IN, SERVER, CLIENT).udp(53, 4000))
            .change(Change::Policy(NOTHING.to_owned()))
            .control(|_| {})
            .drops(IN, out().udp(4000, 53), Drop::Policy)
            .drops(OUT, answer6(), Drop::Policy)
            .passes(OUT, answer(), Pass::Host)
            .drops(IN, out6().udp(4000, 53), Drop::Policy),
        related("an error about a flow that is no longer allowed passes no more", NOTHING, false),
        related("an error about a flow that is still allowed passes once its packet has", ONLY_TO_53, true),
        case("nor does an error about a flow that the default allows no more")
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .control(|control| control.inside_allowed = 0)
            .drops(OUT, arriving(OUT, SERVER, PUBLIC).unreachable(3, &quoted(&sent(4000), 100)), Drop::IcmpUnrelated)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("fragments get the verdict of their packet")
            .world(rules(ONLY_TO_53))
            .forwards_frame(IN, pieces(1000)[0].clone(), OUT, passed[0].clone())
            .forwards_frame(IN, pieces(1000)[1].clone(), OUT, passed[1].clone())
            .drops_frame(IN, fragment(&other, 600, 10)[0].clone(), Drop::Policy)
            .drops_frame(IN, fragment(&other, 600, 10)[1].clone(), Drop::FragmentUndecided)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 2+0"]),
        case("a responder's SYN on a closing connection needs a rule of its own")
            .world(rules("[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\n"))
            .forwards(IN, out6().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, CLIENT6, SERVER6).tcp(4000, 80, SYN, 1))
            .forwards(
                OUT,
                arriving(OUT, SERVER6, CLIENT6).tcp(80, 4000, RST | ACK, 1),
                IN,
                leaving(IN, SERVER6, CLIENT6).tcp(80, 4000, RST | ACK, 1),
            )
            .drops(OUT, arriving(OUT, SERVER6, CLIENT6).tcp(80, 4000, SYN, 1), Drop::Policy)
            .leaves(&["tcp [2001:db8:1::10]:4000 > [2001:db8:3::10]:80, closing, 1+1"]),
        case("without rules, on an interface for both sides, a flow goes on or ends as the default for its side says")
            .forwards(ARM, guest(), ARM, leaving(ARM, ARM_PUBLIC, ARM_SERVER).udp(4000, 54))
            .control(|_| {})
            .forwards(ARM, guest(), ARM, leaving(ARM, ARM_PUBLIC, ARM_SERVER).udp(4000, 54))
            .control(|control| control.inside_allowed = RuleAction::Deny as u8)
            .drops(ARM, guest(), Drop::Policy),
        case("what begins no flow is none of its source's")
            .world(World::default().with(|control| (control.firewall, control.source_flows) = (switch::LIMITS, 1)))
            .drops(IN, out().tcp(4000, 80, ACK, 1), Drop::NoFlow)
            .drops(IN, out().tcp(4000, 80, ACK, 1), Drop::NoFlow)
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .drops(IN, out().udp(4001, 53), Drop::SourceFlows)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
    ]
}

/// An error from outside, in both families, before and after the rules became these.
fn related(sentence: &'static str, rules_then: &'static str, allowed: bool) -> Case {
    let error = || arriving(OUT, SERVER, PUBLIC).unreachable(3, &quoted(&sent(4000), 100));
    let told = || leaving(IN, SERVER, CLIENT).unreachable(3, &quoted(&out().ttl(63).udp(4000, 53), 100));
    let sent6 = || leaving(OUT, CLIENT6, SERVER6).udp(4000, 53);
    let error6 = || arriving(OUT, SERVER6, CLIENT6).unreachable(4, &quoted(&sent6(), 100));
    let told6 = || leaving(IN, SERVER6, CLIENT6).unreachable(4, &quoted(&sent6(), 100));
    let case = case(sentence)
        .world(rules("[[firewall.rule]]\naction = \"allow\"\n"))
        .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
        .forwards(IN, out6().udp(4000, 53), OUT, sent6())
        .forwards(OUT, error(), IN, told())
        .forwards(OUT, error6(), IN, told6())
        .change(Change::Policy(rules_then.to_owned()))
        .control(|_| {})
        .drops(OUT, error(), Drop::IcmpUnrelated)
        .drops(OUT, error6(), Drop::IcmpUnrelated);
    if !allowed {
        return case.leaves(&[
            "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0",
            "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0",
        ]);
    }
    case.forwards(IN, out().udp(4000, 53), OUT, sent(4000))
        .forwards(IN, out6().udp(4000, 53), OUT, sent6())
        .forwards(OUT, error(), IN, told())
        .forwards(OUT, error6(), IN, told6())
        .leaves(&[
            "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 2+0",
            "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 2+0",
        ])
}

fn host() -> Vec<Case> {
    const HOST: &str = r#"
        [[firewall.host]]
        action = "allow"
        source = ["10.0.1.10"]
        protocol = "tcp"
        destination_ports = ["22"]
        [[firewall.host]]
        action = "deny"
        protocol = "tcp"
        tcp_flags = ["syn", "!ack"]
        [[firewall.host]]
        action = "reject"
        in = "outside"
        protocol = "udp"
        destination_ports = ["161"]
    "#;
    let snmp = arriving(OUT, SERVER, PUBLIC).udp(4000, 161);
    vec![
        case("the host can be guarded, and its rules are nobody else's")
            .world(rules(HOST))
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").tcp(4000, 22, SYN, 1), Pass::Host)
            .drops(IN, arriving(IN, SECOND, "10.0.1.1").tcp(4000, 22, SYN, 1), Drop::HostPolicy)
            .drops(OUT, arriving(OUT, SERVER6, "2001:db8:2::1").tcp(4000, 22, SYN, 1), Drop::HostPolicy)
            .passes(IN, arriving(IN, SECOND, "10.0.1.1").tcp(4000, 22, ACK, 1), Pass::Host)
            .passes(IN, arriving(IN, SECOND, "10.0.1.1").udp(4000, 161), Pass::Host)
            .answers(OUT, snmp.clone(), Drop::Rejected, error_to(OUT, SERVER).unreachable(13, &quoted(&snmp, 548)))
            .forwards(IN, out().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, 1))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("rules for flows are not the host's")
            .world(rules("[[firewall.rule]]\naction = \"deny\"\n"))
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").tcp(4000, 22, SYN, 1), Pass::Host)
            .drops(IN, out().udp(4000, 53), Drop::Policy),
    ]
}

fn spoofing() -> Vec<Case> {
    let checked = |strict: u32, loose: u32| {
        World::default().with(|control| {
            (control.reverse_path_strict, control.reverse_path_loose) = (strict, loose);
            control.firewall = 1 << 3;
        })
    };
    let foreign = arriving(IN, "203.0.113.50", "198.51.100.50").udp(4000, 53);
    vec![
        case("a source that is reached by another interface is a lie where that is checked strictly")
            .world(checked(1, 0))
            .drops(IN, foreign.clone(), Drop::ReversePath)
            .drops(IN, arriving(IN, SERVER6, "2001:db8:2::fe").udp(4000, 53), Drop::ReversePath)
            .forwards(IN, out().udp(4000, 53), OUT, sent(4000))
            .passes(IN, arriving(IN, "203.0.113.50", "10.0.1.1").udp(4000, 53), Pass::Host)
            .leaves(&["udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 1+0"]),
        case("where it is not checked, any source will do")
            .world(checked(2, 0))
            .forwards(IN, foreign.clone(), OUT, leaving(OUT, "203.0.113.50", "198.51.100.50").udp(4000, 53))
            .leaves(&["udp 203.0.113.50:4000 > 198.51.100.50:53, unreplied, 1+0"]),
        case("where it is checked loosely, there has to be a way back at all")
            .world(checked(0, 1))
            .forwards(IN, foreign, OUT, leaving(OUT, "203.0.113.50", "198.51.100.50").udp(4000, 53))
            .drops(IN, arriving(IN, "203.0.113.129", SERVER).udp(4000, 53), Drop::ReversePath)
            .drops(IN, arriving(IN, PUBLIC, SERVER).udp(4000, 53), Drop::ReversePath)
            .leaves(&["udp 203.0.113.50:4000 > 198.51.100.50:53, unreplied, 1+0"]),
    ]
}

fn flags() -> Vec<Case> {
    let odd = [0, PSH, SYN | FIN, SYN | RST, FIN | RST, FIN | PSH | URG, SYN | FIN | RST | ACK, FIN];
    let handshake = case("flags that no connection needs are dropped, also in the middle of one")
        .forwards(IN, out().tcp(4000, 80, SYN, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, 1))
        .forwards(
            OUT,
            arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, SYN | ACK, 1),
            IN,
            leaving(IN, SERVER, CLIENT).tcp(80, 4000, SYN | ACK, 1),
        )
        .forwards(IN, out().tcp(4000, 80, ACK, 1), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, ACK, 1));
    vec![
        case("flags that no connection needs begin none")
            .each(odd.map(|flags| (IN, out().tcp(4000, 80, flags, 1), Drop::TcpFlags)))
            .each(odd.map(|flags| (IN, out6().tcp(4000, 80, flags, 1), Drop::TcpFlags)))
            .passes(IN, arriving(IN, CLIENT, "10.0.1.1").tcp(4000, 22, 0, 1), Pass::Host),
        handshake
            .each(odd.map(|flags| (IN, out().tcp(4000, 80, flags, 1), Drop::TcpFlags)))
            .leaves(&["tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, established, 2+1"]),
    ]
}
