//! Rules that name where a packet leaves, and routes that lead nowhere.

use forwarder_ebpf::tables::Fate;
use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_golden::case::{Case, Change, case, error_to, out, out6, quoted};
use forwarder_golden::world::{ARM, CLIENT, CLIENT6, GUEST, IN, OTHER, OUT, PUBLIC, SERVER, SERVER6, Way, World};
use forwarder_golden::world::{arriving, leaving};

/// Allowed is what leaves by the outside, and nothing else.
const BY_OUT: &str = "[[firewall.rule]]\naction = \"allow\"\nout = \"out0\"\n[[firewall.rule]]\naction = \"deny\"\n";
/// Denied is what leaves by where it came, or by the first of all interfaces.
const NOT_BACK: &str = "[[firewall.rule]]\naction = \"deny\"\nout = \"arm0\"\n[[firewall.rule]]\naction = \"deny\"\nout = \"in0\"\n\
    [[firewall.rule]]\naction = \"deny\"\ntranslated = true\n";

pub fn cases() -> Vec<Case> {
    let to = |destination: &str| arriving(IN, CLIENT, destination).udp(4000, 53);
    let guest = arriving(ARM, GUEST, "203.0.113.133").udp(4000, 53);
    let told = error_to(IN, CLIENT).unreachable(1, &quoted(&to("203.0.113.133"), 548));
    let told6 =
        error_to(IN, CLIENT6).unreachable(3, &quoted(&arriving(IN, CLIENT6, "2001:db8:81::1").udp(4000, 53), 1232));
    vec![
        case("what leads nowhere leaves by no interface, and is not translated")
            .world(World::default().rules(NOT_BACK))
            .answers(IN, to("203.0.113.133"), Drop::RouteUnreachable, told)
            .answers(IN, arriving(IN, CLIENT6, "2001:db8:81::1").udp(4000, 53), Drop::RouteUnreachable, told6)
            .answers(
                ARM,
                guest.clone(),
                Drop::RouteUnreachable,
                error_to(ARM, GUEST).unreachable(1, &quoted(&guest, 548)),
            ),
        case("a rule that does not say where it leaves means it too")
            .world(World::default().rules(BY_OUT))
            .drops(IN, to("203.0.113.133"), Drop::Policy)
            .drops(ARM, guest, Drop::Policy),
        ends(
            "a live flow that is no longer allowed ends also where its route refuses",
            Way::Refused(Fate::Unreachable),
            &[],
        ),
        ends(
            "one that the kernel routes on is judged packet by packet, unless it was translated",
            Way::Via(OTHER, 1500),
            &["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"],
        ),
        case("and goes on where that is allowed")
            .world(World::default().rules("[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\n"))
            .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
            .change(Change::Route(THERE6, Way::Via(OTHER, 1500)))
            .control(|_| {})
            .passes(IN, out6().udp(4000, 53), Pass::Unserved)
            .leaves(&["udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 1+0"]),
        survives("a live flow survives a route that swallows for a while", Fate::Blackhole),
        survives("a live flow survives a route that refuses for a while", Fate::Unreachable),
    ]
}

/// Where the servers are.
const THERE: &str = "203.0.113.0/27";
const THERE6: &str = "2001:db8:3::/48";

/// Flows that are there when their route and the rules change.
fn ends(sentence: &'static str, way: Way, left: &[&'static str]) -> Case {
    case(sentence)
        .world(World::default().rules(BY_OUT))
        .forwards(IN, out().udp(4000, 53), OUT, leaving(OUT, PUBLIC, SERVER).udp(4000, 53))
        .forwards(IN, out6().udp(4000, 53), OUT, leaving(OUT, CLIENT6, SERVER6).udp(4000, 53))
        .change(Change::Route(THERE, way))
        .change(Change::Route(THERE6, way))
        .change(Change::Policy("[[firewall.rule]]\naction = \"deny\"\n".to_owned()))
        .control(|_| {})
        .each([(IN, out().udp(4000, 53), Drop::Policy), (IN, out6().udp(4000, 53), Drop::Policy)])
        .leaves(left)
}

fn survives(sentence: &'static str, fate: Fate) -> Case {
    let (sent, sent6) = (leaving(OUT, PUBLIC, SERVER).udp(4000, 53), leaving(OUT, CLIENT6, SERVER6).udp(4000, 53));
    let case = case(sentence)
        .world(World::default().rules(BY_OUT))
        .forwards(IN, out().udp(4000, 53), OUT, sent.clone())
        .forwards(IN, out6().udp(4000, 53), OUT, sent6.clone())
        .change(Change::Route(THERE, Way::Refused(fate)))
        .change(Change::Route(THERE6, Way::Refused(fate)))
        .control(|_| {});
    let case = if fate == Fate::Blackhole {
        case.drops(IN, out().udp(4000, 53), Drop::RouteBlackhole).drops(IN, out6().udp(4000, 53), Drop::RouteBlackhole)
    } else {
        let told = error_to(IN, CLIENT).unreachable(1, &quoted(&out().udp(4000, 53), 548));
        let told6 = error_to(IN, CLIENT6).unreachable(3, &quoted(&out6().udp(4000, 53), 1232));
        case.answers(IN, out().udp(4000, 53), Drop::RouteUnreachable, told).answers(
            IN,
            out6().udp(4000, 53),
            Drop::RouteUnreachable,
            told6,
        )
    };
    case.change(Change::Route(THERE, Way::Via(OUT, 1500)))
        .change(Change::Route(THERE6, Way::Via(OUT, 1500)))
        .control(|_| {})
        .forwards(IN, out().udp(4000, 53), OUT, sent)
        .forwards(IN, out6().udp(4000, 53), OUT, sent6)
        .leaves(&[
            "udp 10.0.1.10:4000 > 203.0.113.10:53 as 198.51.100.1:4000, unreplied, 2+0",
            "udp [2001:db8:1::10]:4000 > [2001:db8:3::10]:53, unreplied, 2+0",
        ])
}
