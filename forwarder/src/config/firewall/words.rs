//! What rules are written in: addresses, protocols, ICMP types, TCP flags.

use crate::config::units::UnitError;
use crate::firewall::ranges::AddressRange;
use ipnet::IpNet;
use std::net::IpAddr;

/// Protocols by name (IANA), those that people write rules about.
const PROTOCOLS: [(&str, u8); 16] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("eigrp", 88),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// ICMP messages by name: types of ICMP (RFC 792) and ICMPv6 (RFC 4443, 4861), where the family has it.
const ICMP: [(&str, Option<u8>, Option<u8>); 10] = [
    ("echo-request", Some(8), Some(128)),
    ("echo-reply", Some(0), Some(129)),
    ("unreachable", Some(3), Some(1)),
    ("too-big", None, Some(2)),
    ("time-exceeded", Some(11), Some(3)),
    ("parameter-problem", Some(12), Some(4)),
    ("redirect", Some(5), Some(137)),
    ("timestamp", Some(13), None),
    ("router-solicitation", Some(10), Some(133)),
    ("router-advertisement", Some(9), Some(134)),
];

/// TCP flags by name (RFC 9293 §3.1). ECN's two are left out: they say nothing about a connection.
const TCP_FLAGS: [(&str, u8); 6] = [("fin", 1), ("syn", 2), ("rst", 4), ("psh", 8), ("ack", 16), ("urg", 32)];

/// Reads a prefix, a range such as `192.0.2.1-192.0.2.9`, or an address, of either family.
///
/// # Errors
/// When it is none, or has bits set that its length leaves out.
pub fn parse_range(text: &str) -> Result<AddressRange, UnitError> {
    let text = text.trim();
    if let Some((first, last)) = text.split_once('-') {
        let [first, last] = [first, last].map(|text| text.trim().parse::<IpAddr>());
        let (Ok(first), Ok(last)) = (first, last) else { return Err(UnitError::Address) };
        if first.is_ipv4() != last.is_ipv4() || last < first {
            return Err(UnitError::AddressRange);
        }
        return Ok(AddressRange { first, last });
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| UnitError::Address)?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| UnitError::Address)?;
    let length = length.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    let net = IpNet::new(address, length).map_err(|_| UnitError::Address)?;
    if net.network() == address {
        return Ok(net.into());
    }
    Err(UnitError::AddressBits { network: net.trunc(), address })
}

/// A protocol by name or number.
pub(super) fn parse_protocol(text: &str) -> Result<u8, String> {
    let known = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    known.or_else(|| text.parse().ok()).ok_or_else(|| {
        let names = PROTOCOLS.map(|(name, _)| name).join(", ");
        format!("is not a protocol; write one of {names}, or a number from 0 to 255")
    })
}

/// What people call a protocol.
pub fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, other)| *other == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// Types of both families with an optional code: by name, or `type` or `type/code`, which then means both.
pub(super) type IcmpTypes = (Option<u8>, Option<u8>, Option<u8>);

/// An ICMP message: a name, `8` or `3/13`.
pub(super) fn parse_icmp(text: &str) -> Result<IcmpTypes, String> {
    if let Some((_, v4, v6)) = ICMP.iter().find(|(name, ..)| *name == text) {
        return Ok((*v4, *v6, None));
    }
    let number = |text: &str| text.parse::<u8>().ok();
    let numbers = match text.split_once('/') {
        Some((kind, code)) => number(kind).zip(number(code)).map(|(kind, code)| (kind, Some(code))),
        None => number(text).map(|kind| (kind, None)),
    };
    numbers.map(|(kind, code)| (Some(kind), Some(kind), code)).ok_or_else(|| {
        let names = ICMP.map(|(name, ..)| name).join(", ");
        format!("is not an ICMP message; write one of {names}, or a type and code such as \"3/13\"")
    })
}

/// A TCP flag, `!` before it when it must not be set: its bit, and whether it must be.
pub(super) fn parse_flag(text: &str) -> Result<(u8, bool), String> {
    let (name, set) = text.strip_prefix('!').map_or((text, true), |name| (name, false));
    let flag = TCP_FLAGS.iter().find(|(known, _)| *known == name);
    flag.map(|(_, bit)| (*bit, set)).ok_or_else(|| {
        let names = TCP_FLAGS.map(|(name, _)| name).join(", ");
        format!("is not a TCP flag; write some of {names}, with `!` before those that must not be set")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_either_family_and_exact() {
        let ends = |text: &str| parse_range(text).map(|range| (range.first.to_string(), range.last.to_string()));
        let pair = |first: &str, last: &str| Ok((first.to_owned(), last.to_owned()));
        assert_eq!(ends("10.0.0.0/8"), pair("10.0.0.0", "10.255.255.255"));
        assert_eq!(ends("192.0.2.1 - 192.0.2.9"), pair("192.0.2.1", "192.0.2.9"));
        assert_eq!(ends("2001:db8::1"), pair("2001:db8::1", "2001:db8::1"));
        assert_eq!(ends("2001:db8::/127"), pair("2001:db8::", "2001:db8::1"));
        assert_eq!(ends("0.0.0.0/0"), pair("0.0.0.0", "255.255.255.255"));
        assert_eq!(ends("192.0.2.9-192.0.2.1"), Err(UnitError::AddressRange));
        assert_eq!(ends("192.0.2.9-2001:db8::1"), Err(UnitError::AddressRange));
        assert!(matches!(ends("10.0.0.1/8"), Err(UnitError::AddressBits { .. })));
        for text in ["", "10.0.0/8", "10.0.0.0/33", "::/129", "a-b", "010.0.0.0/8", "@office"] {
            assert_eq!(ends(text), Err(UnitError::Address), "{text}");
        }
    }

    #[test]
    fn words_and_numbers_mean_the_same() {
        assert_eq!((parse_protocol("tcp"), parse_protocol("6")), (Ok(6), Ok(6)));
        assert!(parse_protocol("256").is_err() && parse_protocol("TCP").is_err());
        assert_eq!(parse_icmp("echo-request"), Ok((Some(8), Some(128), None)));
        assert_eq!(parse_icmp("3/13"), Ok((Some(3), Some(3), Some(13))));
        assert!(parse_icmp("3/").is_err() && parse_icmp("ping").is_err());
        assert_eq!((parse_flag("!ack"), parse_flag("syn")), (Ok((16, false)), Ok((2, true))));
        assert!(parse_flag("!").is_err() && parse_flag("ece").is_err());
    }
}
