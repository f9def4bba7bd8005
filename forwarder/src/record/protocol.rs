//! Names of the IP protocols that have one here; all others go by their number (IANA, "Protocol Numbers").

const NAMES: [(&str, u8); 8] =
    [("icmp", 1), ("tcp", 6), ("udp", 17), ("gre", 47), ("esp", 50), ("ah", 51), ("icmpv6", 58), ("sctp", 132)];

/// The name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    NAMES.iter().find(|(_, other)| *other == number).map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// The protocol with this name.
pub fn protocol_named(name: &str) -> Option<u8> {
    NAMES.iter().find(|(other, _)| name.eq_ignore_ascii_case(other)).map(|(_, number)| *number)
}

/// All names, for who has written another.
pub fn protocol_names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}
