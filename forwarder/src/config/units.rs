//! Durations, sizes, ports and prefixes as people write them, both ways. Knows no keys and no lines.

use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Why a text is not what it should be, and what to write instead. Completes a sentence that begins with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("is not a duration; write a number and its unit, such as \"30s\" or \"10m\"")]
    Duration,
    /// Not a size.
    #[error("is not a size; write a number such as 4096, \"64k\" or \"1m\"")]
    Size,
    /// Not ports.
    #[error("is not a port range; write the first and the last port, such as \"1024-64511\"")]
    Ports,
    /// A range with its ends exchanged.
    #[error("is a range without a port in it; write \"{last}-{first}\"")]
    PortsInverted {
        /// As written.
        first: u16,
        /// As written.
        last: u16,
    },
    /// A range with port 0.
    #[error("begins with port 0, which cannot be used; allowed are 1 to 65535, so begin with 1 or more")]
    PortZero,
    /// Not a prefix.
    #[error("is not an IPv4 prefix; write an address and its length, such as \"10.0.0.0/16\", or an address alone")]
    Prefix,
    /// A prefix of the other family.
    #[error("is IPv6, but only IPv4 is translated; write an IPv4 prefix such as \"10.0.0.0/16\", or remove it")]
    Ipv6,
    /// Neither prefix nor range nor address.
    #[error("is no address, prefix or range; write \"10.0.0.0/16\", \"2001:db8::/32\" or \"192.0.2.1-192.0.2.9\"")]
    Address,
    /// A range with ends that do not go together.
    #[error("is a range without an address in it; write the lower end first, both of one family")]
    AddressRange,
    /// A prefix of either family with bits that its length cuts off.
    #[error("has bits set beyond its length; write \"{network}\" for the network or \"{address}\" for the address")]
    AddressBits {
        /// The prefix without these bits.
        network: IpNet,
        /// The address without the length.
        address: IpAddr,
    },
    /// An address with a length that cuts into it.
    #[error("has bits set beyond its length; write \"{network}\" for the network or \"{address}\" for the address")]
    HostBits {
        /// The prefix without these bits.
        network: Ipv4Net,
        /// The address without the length.
        address: Ipv4Addr,
    },
}

/// Reads a duration: one or more numbers with a unit, such as `350s`, `10m` or `1h 30m`.
///
/// # Errors
/// When it is none.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    humantime::parse_duration(text.trim()).map_err(|_| UnitError::Duration)
}

/// Reads a size: a number, perhaps with `k` (1,024) or `m` (1,048,576) behind it.
///
/// # Errors
/// When it is none.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(UnitError::Size);
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or(UnitError::Size)
}

/// Reads a range of ports, both ends included, or a single port.
///
/// # Errors
/// When it is none, or has no port that can be used.
pub fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, UnitError> {
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| UnitError::Ports);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match (first, last) {
        _ if last < first => Err(UnitError::PortsInverted { first, last }),
        (0, _) => Err(UnitError::PortZero),
        _ => Ok(first..=last),
    }
}

/// Reads an IPv4 prefix, or an address as a prefix of its own.
///
/// # Errors
/// When it is none, is IPv6, or has bits set that its length leaves out.
pub fn parse_prefix(text: &str) -> Result<Ipv4Net, UnitError> {
    let (address, length) = match text.trim().split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| UnitError::Prefix)?)),
        None => (text.trim(), None),
    };
    // Not ipnet's own parser: it takes a leading zero, which others read as octal.
    match address.parse::<IpAddr>().map_err(|_| UnitError::Prefix)? {
        IpAddr::V6(_) => Err(UnitError::Ipv6),
        IpAddr::V4(address) => {
            let length = length.unwrap_or(Ipv4Addr::BITS as u8);
            let prefix = Ipv4Net::new(address, length).map_err(|_| UnitError::Prefix)?;
            let network = prefix.trunc();
            if network == prefix { Ok(prefix) } else { Err(UnitError::HostBits { network, address }) }
        }
    }
}

/// A duration as the config takes it: in seconds, or milliseconds where that says more.
pub fn duration_text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// A size as the config takes it, with `k` or `m` where nothing is lost.
pub fn size_text(size: u64) -> String {
    match size {
        0 => "0".to_owned(),
        _ if size.is_multiple_of(1 << 20) => format!("{}m", size >> 20),
        _ if size.is_multiple_of(1 << 10) => format!("{}k", size >> 10),
        _ => size.to_string(),
    }
}

/// An amount of memory, in the largest unit that leaves a whole number before the point.
pub fn bytes_text(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x10_0000 => (1 << 10, "KiB"),
        0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{:.1} {name}", bytes as f64 / f64::from(unit))
}

/// Prefixes, ports or names in one line.
pub fn list_text<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("350s"), Ok(Duration::from_secs(350)));
        assert_eq!(parse_duration(" 10m "), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for text in ["350", "", "s", "-1s", "ten minutes", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), Err(UnitError::Duration), "{text}");
        }
        assert_eq!(duration_text(Duration::from_secs(350)), "350s");
        assert_eq!(duration_text(Duration::from_millis(1500)), "1500ms");
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("1k"), Ok(1024));
        assert_eq!(parse_size("64K"), Ok(65_536));
        assert_eq!(parse_size("1m"), Ok(1_048_576));
        assert_eq!(parse_size("4096"), Ok(4096));
        for text in
            ["", "k", "-1k", "+1k", "1 k", "1g", "1.5m", "1kk", "99999999999999999999", "18446744073709551615k", "ä"]
        {
            assert_eq!(parse_size(text), Err(UnitError::Size), "{text}");
        }
        for (size, text) in [(0, "0"), (1000, "1000"), (1024, "1k"), (1536, "1536"), (65_536, "64k"), (3 << 20, "3m")] {
            assert_eq!(size_text(size), text);
            assert_eq!(parse_size(text), Ok(size));
        }
        assert_eq!(bytes_text(1000), "1.0 KiB");
        assert_eq!(bytes_text(288 << 20), "288.0 MiB");
        assert_eq!(bytes_text(3 << 29), "1.5 GiB");
    }

    #[test]
    fn port_ranges_include_both_ends() {
        assert_eq!(parse_ports("1024-64511"), Ok(1024..=64_511));
        assert_eq!(parse_ports("50000 - 50007"), Ok(50_000..=50_007));
        assert_eq!(parse_ports("443"), Ok(443..=443));
        assert_eq!(parse_ports("2000-1000"), Err(UnitError::PortsInverted { first: 2000, last: 1000 }));
        assert_eq!(parse_ports("0-1023"), Err(UnitError::PortZero));
        for text in ["", "-", "1-", "-1", "1-2-3", "65536", "http", "1:2"] {
            assert_eq!(parse_ports(text), Err(UnitError::Ports), "{text}");
        }
    }

    #[test]
    fn prefixes_are_exact() {
        assert_eq!(parse_prefix("10.0.0.0/8").map(|prefix| prefix.to_string()), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(parse_prefix("10.0.0.1").map(|prefix| prefix.to_string()), Ok("10.0.0.1/32".to_owned()));
        assert_eq!(parse_prefix("0.0.0.0/0").map(|prefix| prefix.prefix_len()), Ok(0));
        let error = parse_prefix("10.1.2.3/16").unwrap_err();
        assert_eq!(
            error.to_string(),
            "has bits set beyond its length; write \"10.1.0.0/16\" for the network or \"10.1.2.3\" for the address"
        );
        for text in ["2001:db8::/32", "::1", "2001:db8::1/32"] {
            assert_eq!(parse_prefix(text), Err(UnitError::Ipv6), "{text}");
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "any",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/8/8",
            "10.0.0.0-10.0.0.9",
            "010.0.0.0/8",
        ] {
            assert_eq!(parse_prefix(text), Err(UnitError::Prefix), "{text}");
        }
    }
}
