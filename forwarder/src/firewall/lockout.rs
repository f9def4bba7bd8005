//! Whether rules for the host would end the ssh connection that the operator sits in.

use crate::plan::FirewallPlan;
use forwarder_ebpf::abi::MAX_IFACES;
use forwarder_ebpf::abi::firewall::{OUT_HOST, RuleAction, origin_key, rule, service_key, way_key};
use forwarder_ebpf::wire::protocol::TCP;
use forwarder_ebpf::wire::tcp_flags::{ACK, SYN};
use std::net::IpAddr;

/// A warning, when they would. `connection` is what sshd leaves in `SSH_CONNECTION`: client's address and port, own address
/// and port. By which interface it comes is not known; one that it must not come by is enough.
pub fn warning(plan: &FirewallPlan, connection: &str) -> Option<String> {
    let words: Vec<&str> = connection.split_whitespace().collect();
    let [client, client_port, own, own_port] = words.as_slice() else { return None };
    let (client, own): (IpAddr, IpAddr) = (client.parse().ok()?, own.parse().ok()?);
    let (client_port, own_port): (u16, u16) = (client_port.parse().ok()?, own_port.parse().ok()?);
    let ways = (0..MAX_IFACES as u8).flat_map(|slot| [false, true].map(|side| way_key(slot, side, OUT_HOST, false)));
    let packets = ways.flat_map(|way| [SYN, ACK].map(|flags| (way, flags)));
    let refuses = |(way, flags): (u64, u8)| {
        let met = plan.matchers.iter().position(|matcher| {
            matcher.sources.contains(client)
                && matcher.destinations.contains(own)
                && matcher.services.contains(service_key(TCP, own_port).into())
                && matcher.origins.contains(origin_key(flags, client_port).into())
                && matcher.ways.contains(way.into())
        })?;
        let action = plan.matchers[met].word & rule::ACTION_MASK;
        (action != RuleAction::Allow as u64).then(|| plan.rules[met].name.clone())
    };
    let rule = { packets }.find_map(refuses)?;
    Some(format!(
        "Firewall rule `{rule}` for the host would end the ssh connection from {client} that you use now, or keep it from \
         being opened again; allow it before that rule."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Role};

    #[test]
    fn who_would_be_locked_out_is_warned() {
        let warn = |text: &str| {
            let config = config::parse(text, "f.toml").unwrap();
            let plan = FirewallPlan::of(&config.firewall, &[("ens5".to_owned(), Role::Outside)], &mut Vec::new());
            warning(&plan, "203.0.113.9 51000 198.51.100.10 22")
        };
        let deny = "[[firewall.host]]\nname = \"guard\"\naction = \"deny\"\nprotocol = \"tcp\"\ntcp_flags = [\"syn\", \"!ack\"]\n";
        let allow = "[[firewall.host]]\naction = \"allow\"\nprotocol = \"tcp\"\nsource = \"203.0.113.0/24\"\ndestination_ports = \"22\"\n";
        assert!(warn(deny).is_some_and(|text| text.contains("guard")));
        assert_eq!((warn(&format!("{allow}{deny}")), warn("")), (None, None));
        assert_eq!(warn("[[firewall.rule]]\naction = \"deny\"\n"), None);
        assert!(warn(&deny.replace("tcp_flags = [\"syn\", \"!ack\"]\n", "in = \"ens5\"\n")).is_some());
    }
}
