//! `log = true`: a line in the controller's log for each flow that a rule let begin, and for each packet or flow that it
//! refused. What is suppressed is counted by the datapath and said here.

use super::report::InForce;
use crate::datapath::{DatapathError, RuleEvents};
use crate::error::one_line;
use crate::live::Live;
use forwarder_ebpf::abi::firewall::{OUT_HOST, RuleAction, RuleEvent, way_in, way_out};
use forwarder_ebpf::wire::protocol::{ICMP, ICMPV6, TCP, UDP};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked whether anything was suppressed.
const PERIOD: Duration = Duration::from_secs(5);

/// Logs as long as the runtime lives.
pub async fn run(live: Arc<Live>, mut events: RuleEvents) {
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Those of a controller before this one are not ours to tell.
    let mut suppressed = live.datapath().read_suppressed_rule_events().unwrap_or_default();
    loop {
        let done = tokio::select! {
            event = events.next_event() => event.map(|event| say(&live, &event)),
            _ = tick.tick() => say_suppressed(&live, &mut suppressed),
        };
        if let Err(error) = done {
            tracing::error!("firewall rules are logged no more: {}", one_line(&error));
            return;
        }
    }
}

fn say_suppressed(live: &Live, before: &mut u64) -> Result<(), DatapathError> {
    let now = live.datapath().read_suppressed_rule_events()?;
    let suppressed = now.saturating_sub(*before);
    *before = now;
    if suppressed > 0 {
        tracing::warn!(suppressed, "firewall rule log: more than firewall.logs_per_second_per_cpu");
    }
    Ok(())
}

fn say(live: &Live, event: &RuleEvent) {
    let rule = name_of(&live.rules(), event.counter);
    let interface = |slot: u8| {
        let view = live.view();
        view.served.iter().find(|served| served.slot == slot).map_or_else(|| "-".to_owned(), |it| it.name.clone())
    };
    let (enters, leaves) = (interface(way_in(event.way)), way_out(event.way));
    let leaves = if leaves == OUT_HOST { "host".to_owned() } else { interface(leaves) };
    let Line { action, protocol, source, destination } = Line::of(event);
    tracing::info!(rule, action, protocol, source, destination, r#in = enters, out = leaves, "firewall rule");
}

/// The rule with this counter; by its number, should it have gone in the meantime.
fn name_of(rules: &InForce, counter: u16) -> String {
    let found = rules.rules.iter().find(|(_, other)| *other == counter);
    found.map_or_else(|| format!("#{counter}"), |(rule, _)| rule.name.clone())
}

/// An event in words.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    action: &'static str,
    protocol: String,
    source: String,
    destination: String,
}

impl Line {
    fn of(event: &RuleEvent) -> Self {
        let address = |[upper, lower]: [u64; 2]| match event.family {
            4 => IpAddr::V4(Ipv4Addr::from_bits(lower as u32)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from(upper) << 64 | u128::from(lower))),
        };
        let (number, detail) = ((event.service >> 16) as u8, event.service as u16);
        let (source, destination) = (address(event.source), address(event.destination));
        let protocol = crate::config::protocol_name(number);
        let [kind, code] = detail.to_be_bytes();
        let (protocol, source, destination) = match number {
            TCP | UDP => {
                let (from, to) = (SocketAddr::new(source, event.origin as u16), SocketAddr::new(destination, detail));
                (protocol, from.to_string(), to.to_string())
            }
            ICMP | ICMPV6 => (format!("{protocol} {kind}/{code}"), source.to_string(), destination.to_string()),
            _ => (protocol, source.to_string(), destination.to_string()),
        };
        let action = match event.action {
            action if action == RuleAction::Allow as u8 => "allow",
            action if action == RuleAction::Reject as u8 => "reject",
            _ => "deny",
        };
        Self { action, protocol, source, destination }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_ebpf::abi::firewall::{origin_key, service_key};

    #[test]
    fn an_event_says_who_spoke_to_whom() {
        let four = |text: &str| [0, u64::from(text.parse::<Ipv4Addr>().unwrap().to_bits())];
        let event = RuleEvent {
            source: four("10.0.1.10"),
            destination: four("203.0.113.10"),
            service: service_key(TCP, 443),
            origin: origin_key(2, 40_000),
            action: RuleAction::Reject as u8,
            family: 4,
            ..RuleEvent::default()
        };
        let line = Line::of(&event);
        assert_eq!((line.action, line.protocol.as_str()), ("reject", "tcp"));
        assert_eq!((line.source.as_str(), line.destination.as_str()), ("10.0.1.10:40000", "203.0.113.10:443"));
        let ping = RuleEvent {
            source: [0x2001_0db8 << 32, 1],
            destination: [0x2001_0db8 << 32, 2],
            service: service_key(ICMPV6, 128 << 8),
            action: RuleAction::Allow as u8,
            family: 6,
            ..RuleEvent::default()
        };
        let line = Line::of(&ping);
        assert_eq!((line.action, line.protocol.as_str()), ("allow", "icmpv6 128/0"));
        assert_eq!((line.source.as_str(), line.destination.as_str()), ("2001:db8::1", "2001:db8::2"));
    }
}
