//! Which connections are meant: what `forwarder flows` takes on the command line and in a query.

pub use crate::record::protocol_name;
use crate::record::{protocol_named, protocol_names};
use forwarder_ebpf::conntrack::State;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// All that is given must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Either end, before or after translation: an address or a prefix
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpNet>,
    /// Either end's port (for ICMP echo the identifier), before or after translation
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(long, value_parser = parse_protocol)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// unreplied, opening, established, half-closed or closing
    #[arg(long, value_parser = parse_state)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    let number = protocol_named(text).or_else(|| text.parse().ok());
    number.ok_or_else(|| format!("not a protocol: {} or a number from 0 to 255", protocol_names()))
}

fn parse_state(text: &str) -> Result<String, String> {
    let names = State::ALL.map(State::name);
    if names.contains(&text) { Ok(text.to_owned()) } else { Err(format!("not a state: {}", names.join(", "))) }
}

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "neither an address nor a prefix, such as 10.0.1.10 or 2001:db8::/32".to_owned())
}

/// Both ends of a connection, once as the originator sent it and once as it left.
pub struct Ends {
    /// Addresses: source, destination, translated source, translated destination.
    pub addresses: [IpAddr; 4],
    /// Ports of the same.
    pub ports: [u16; 4],
}

impl Filter {
    /// Whether a connection is meant.
    pub fn matches(&self, protocol: u8, state: State, ends: &Ends) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.state.as_ref().is_none_or(|wanted| wanted == state.name())
            && self.port.is_none_or(|wanted| ends.ports.contains(&wanted))
            && self.address.is_none_or(|wanted| ends.addresses.iter().any(|address| wanted.contains(address)))
    }

    /// Whether every connection is meant.
    pub fn is_everything(&self) -> bool {
        self.address.is_none() && self.port.is_none() && self.protocol.is_none() && self.state.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        let address = |text: &str| text.parse().expect("an address");
        Ends {
            addresses: [
                address("10.0.1.10"),
                address("203.0.113.10"),
                address("198.51.100.10"),
                address("203.0.113.10"),
            ],
            ports: [40_000, 443, 1024, 443],
        }
    }

    #[test]
    fn everything_given_must_hold() {
        let matches = |filter: &Filter| filter.matches(6, State::Established, &ends());
        assert!(matches(&Filter::default()));
        assert!(matches(&Filter { address: parse_prefix("10.0.0.0/8").ok(), ..Filter::default() }));
        assert!(matches(&Filter { address: parse_prefix("198.51.100.10").ok(), ..Filter::default() }));
        assert!(!matches(&Filter { address: parse_prefix("198.51.100.11").ok(), ..Filter::default() }));
        assert!(matches(&Filter { port: Some(1024), protocol: Some(6), ..Filter::default() }));
        assert!(!matches(&Filter { port: Some(1024), protocol: Some(17), ..Filter::default() }));
        assert!(!matches(&Filter { state: Some("closing".to_owned()), ..Filter::default() }));
    }

    #[test]
    fn protocols_go_by_name_and_number() {
        assert_eq!(parse_protocol("TCP"), Ok(6));
        assert_eq!(parse_protocol("89"), Ok(89));
        assert!(parse_protocol("tpc").is_err());
        assert_eq!((protocol_name(17), protocol_name(89)), ("udp".to_owned(), "89".to_owned()));
    }
}
