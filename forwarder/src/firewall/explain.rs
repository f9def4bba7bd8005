//! What would become of a flow, and why: its first packet through the packet core itself, in a body of the host that is
//! filled with the compiled rules, the switches and the ways that the kernel's FIB tells the datapath.

use super::report::InForce;
use crate::datapath::{Datapath, DatapathError, Routed};
use etherparse::PacketBuilder;
use forwarder_ebpf::abi::firewall::{COUNTER_INSIDE, COUNTER_OUTSIDE};
use forwarder_ebpf::abi::status;
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::tables::{Fate, Route};
use forwarder_ebpf::verdict::Verdict;
use forwarder_ebpf::wire::protocol::{ICMP, ICMPV6, TCP, UDP};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A flow to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Protocol number: TCP, UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// Interface that it enters by; none: the one that its source is reached by.
    pub enters: Option<String>,
}

/// What became of it, step by step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// Sentences, in the order of the datapath's stages.
    pub steps: Vec<String>,
    /// How it ends: `forward`, `pass` or `drop`.
    pub verdict: String,
}

/// Everything that the answer follows from.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The running datapath.
    pub datapath: &'a Datapath,
    /// The rules in force.
    pub rules: &'a InForce,
    /// Name and index of the ingress interface.
    pub enters: (String, u32),
}

/// Sends the flow's first packet through the core.
///
/// # Errors
/// When the datapath cannot be read.
pub fn explain(question: &Question, ground: &Ground<'_>) -> Result<Explanation, DatapathError> {
    let (sim, routed) = fill(question, ground)?;
    let config = ground.datapath.read_ifaces()?.into_iter().find(|(index, _)| *index == ground.enters.1);
    let Some((_, config)) = config else {
        let step = format!("enters by {}, which is not served: the kernel decides", ground.enters.0);
        return Ok(Explanation { steps: vec![step], verdict: "pass".to_owned() });
    };
    let outcome = sim.process(&first_packet(question, config.mac), ground.enters.1, 1);
    let role = ["not served", "inside", "outside", "both sides"][usize::from(config.side & 3)];
    let mut steps = vec![format!("enters by {} ({role})", ground.enters.0)];
    steps.push(format!("route: {}", words(&routed, question, &ground.enters.0)));
    for set in &ground.rules.sets {
        for (what, end) in [("source", question.source), ("destination", question.destination)] {
            if set.1.contains(end.ip()) {
                steps.push(format!("{what} {} is in set @{}", end.ip(), set.0));
            }
        }
    }
    steps.extend(rule(&sim, ground.rules));
    steps.extend(translation(&sim));
    let (verdict, end) = match outcome.verdict {
        Verdict::Forward(_) if routed.route.fate == Fate::NoNeighbour => {
            ("forward", format!("forwarded, when {} has answered who it is", routed.next_hop))
        }
        Verdict::Forward(_) => ("forward", "forwarded".to_owned()),
        Verdict::Pass(why) => ("pass", format!("left to the host: {}", why.text())),
        Verdict::Drop(why) => ("drop", format!("dropped as {}: {}", why.name(), why.text())),
        Verdict::Answered(why) => {
            ("drop", format!("dropped as {}, and its sender is told: {}", why.name(), why.text()))
        }
        Verdict::Next(_) => ("drop", "dropped: the datapath did not decide".to_owned()),
    };
    steps.push(end);
    Ok(Explanation { steps, verdict: verdict.to_owned() })
}

/// The body, and what the FIB says of the destination.
fn fill(question: &Question, ground: &Ground<'_>) -> Result<(Sim, Routed), DatapathError> {
    let control = ground.datapath.read_control()?;
    let (rules, addresses) = ground.datapath.read_nat(control.nat_bank & 1)?;
    let mut sim = Sim::new().nat(control.nat_bank & 1, &rules, &addresses);
    sim.set_control(control);
    for (ifindex, config) in ground.datapath.read_ifaces()? {
        sim.set_iface(ifindex, config);
    }
    sim.set_policy(&ground.rules.lines);
    let (source, destination) = (question.source.ip(), question.destination.ip());
    let ask = |source, destination| ground.datapath.ask_fib(ground.enters.1, source, destination, question.protocol);
    let (there, back) = (ask(source, destination)?, ask(destination, source)?);
    for (address, Routed { route, .. }) in [(source, back), (destination, there)] {
        let route = Some(match route.fate {
            // Who waits for a neighbour goes on when it answers; only then does the kernel tell the MTU.
            Fate::NoNeighbour => Route::forward(route.ifindex, route.mac, u16::MAX),
            _ => route,
        });
        match address {
            IpAddr::V4(address) => sim.set_route4(address.octets(), 32, route),
            IpAddr::V6(address) => sim.set_route6(address.octets(), 128, route),
        }
    }
    Ok((sim, there))
}

/// What the FIB says, in words.
fn words(Routed { route, next_hop }: &Routed, question: &Question, enters: &str) -> String {
    match route.fate {
        Fate::Forward | Fate::NoNeighbour => {}
        Fate::NotForwarded => return "the host's own, or none".to_owned(),
        Fate::Blackhole => return "a blackhole".to_owned(),
        Fate::Unreachable => return "unreachable".to_owned(),
        Fate::Prohibited => return "prohibited".to_owned(),
        Fate::Disabled => return format!("none, because the kernel's forwarding is off for {enters}"),
    }
    let out = nix::net::if_::if_indextoname(route.ifindex);
    let out = out.map_or_else(|_| format!("interface {}", route.ifindex), |name| name.to_string_lossy().into_owned());
    let via = if *next_hop == question.destination.ip() { String::new() } else { format!(" via {next_hop}") };
    format!("out by {out}{via}")
}

/// A SYN, a datagram or an echo request.
fn first_packet(question: &Question, to: [u8; 6]) -> Vec<u8> {
    let Question { source, destination, protocol, .. } = question;
    let builder = PacketBuilder::ethernet2([2; 6], to);
    let builder = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => builder.ipv4(source.octets(), destination.octets(), 64),
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V6(address) => std::net::Ipv6Addr::octets(&address),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            builder.ipv6(octets(source), octets(destination), 64)
        }
    };
    let mut frame = Vec::new();
    let (source, destination) = (source.port(), destination.port());
    let written = match *protocol {
        TCP => builder.tcp(source, destination, 1, 1024).syn().write(&mut frame, &[]),
        UDP => builder.udp(source, destination).write(&mut frame, &[]),
        ICMP => builder.icmpv4_echo_request(source, 1).write(&mut frame, &[]),
        ICMPV6 => builder.icmpv6_echo_request(source, 1).write(&mut frame, &[]),
        _ => Ok(()),
    };
    written.expect("a vector takes everything");
    frame
}

/// The rule that was met, told by its counter.
fn rule(sim: &Sim, rules: &InForce) -> Option<String> {
    let met = sim.rule_counters().iter().position(|counter| counter.hits > 0)? as u16;
    let side = match met {
        COUNTER_INSIDE => Some(("inside", 0)),
        COUNTER_OUTSIDE => Some(("outside", 1)),
        _ => None,
    };
    if let Some((side, at)) = side {
        return Some(format!("no rule matches: the default for {side} is {}", rules.defaults[at]));
    }
    let (rule, _) = rules.rules.iter().find(|(_, counter)| *counter == met)?;
    Some(format!("rule `{}`: {}", rule.name, rule.text))
}

fn translation(sim: &Sim) -> Option<String> {
    let translated = status::ORIGINATOR | status::SOURCE_NAT;
    let (_, entry) = sim
        .flows4
        .all()
        .into_iter()
        .map(|(key, entry, ..)| (key, entry))
        .find(|(_, entry)| entry.status.load() & translated == translated)?;
    let address = IpAddr::from(entry.source());
    Some(format!("source NAT: leaves as {address}, from the same port if it is free there"))
}

/// Reads `SRC:PORT -> DST:PORT/PROTOCOL [in IFACE]`, in as many words as the shell makes of it.
///
/// # Errors
/// What it should look like.
pub fn parse(words: &[String]) -> Result<Question, String> {
    const LOOK: &str = "write SRC:PORT -> DST:PORT/tcp [in IFACE], such as 10.0.1.10:40000 -> 203.0.113.10:443/tcp";
    let line = words.join(" ").replace("->", " ");
    let words: Vec<&str> = line.split_whitespace().collect();
    let (source, rest) = words.split_first().ok_or(LOOK)?;
    let (to, rest) = rest.split_first().ok_or(LOOK)?;
    let (destination, protocol) = to.rsplit_once('/').ok_or(LOOK)?;
    let end = |text: &str| -> Result<SocketAddr, String> {
        let alone = text.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| SocketAddr::new(address, 0));
        text.parse().or(alone).map_err(|_| format!("`{text}` is no address with a port; {LOOK}"))
    };
    let (source, destination) = (end(source)?, end(destination)?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err("source and destination are of different families".to_owned());
    }
    let protocol = match (protocol, source.is_ipv4()) {
        ("tcp", _) => TCP,
        ("udp", _) => UDP,
        ("icmp" | "icmpv6", true) => ICMP,
        ("icmp" | "icmpv6", false) => ICMPV6,
        (other, _) => return Err(format!("`{other}` is not tcp, udp or icmp; {LOOK}")),
    };
    let enters = match rest {
        [] => None,
        ["in", interface] => Some((*interface).to_owned()),
        _ => return Err(LOOK.to_owned()),
    };
    Ok(Question { source, destination, protocol, enters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_written_as_people_write_it() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let read = parse(&words("10.0.1.10:40000 -> 203.0.113.10:443/tcp in ens6")).unwrap();
        assert_eq!((read.source.port(), read.destination.port(), read.protocol), (40_000, 443, TCP));
        assert_eq!(read.enters.as_deref(), Some("ens6"));
        assert_eq!(parse(&["[2001:db8::1]:1->[2001:db8::2]:2/udp".to_owned()]).unwrap().protocol, UDP);
        assert_eq!(parse(&words("2001:db8::1 -> 2001:db8::2/icmp")).unwrap().protocol, ICMPV6);
        for wrong in
            ["", "10.0.0.1", "10.0.0.1:1 -> 10.0.0.2:2", "10.0.0.1:1 -> ::1/tcp", "10.0.0.1:1 -> 10.0.0.2:2/gre"]
        {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
