//! Which records are meant: the language of `filter` in the config, and of `flow-logs tail`.
//!
//! ```text
//! srcaddr 10.0.1.0/24 and dstport 443,8443 and action REJECT
//! host 10.0.1.5 and not (udp and port 53) or bytes >= 1000000
//! ```
//!
//! A test is a field of a record, perhaps an operator (`=` where there is none), and what it is to be; or a word that
//! tcpdump(1) has as well. `not` binds most, then `and`, then `or`. A field that does not apply is `-`.

mod parse;

use super::{Field, Line, Tuple, Value};
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

/// Which records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// All.
    #[default]
    All,
    /// Of what was forwarded.
    Accept,
    /// Of what was refused.
    Reject,
    /// Those that a test says yes to.
    Where(Arc<Test>),
}

/// Why a text is no filter. Completes a sentence that begins with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(pub(super) String);

/// A question to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Constant.
    Always,
    /// Forwarded (true) or refused.
    Accepted(bool),
    /// A field's value is one of these.
    OneOf(Field, Vec<Wanted>),
    /// A field's number is in a range.
    Within(Field, RangeInclusive<i64>),
    /// An end of the packet, before or after translation, has one of these addresses.
    Host(End, Vec<IpNet>),
    /// The same of ports.
    Port(End, Vec<RangeInclusive<u16>>),
    /// It does not hold.
    Not(Box<Self>),
    /// All hold.
    And(Vec<Self>),
    /// One holds.
    Or(Vec<Self>),
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its source.
    Source,
    /// Its destination.
    Destination,
    /// Either.
    Any,
}

/// What a field may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    None,
    /// A number from here to there.
    Numbers(RangeInclusive<i64>),
    /// An address in a prefix.
    Addresses(IpNet),
    /// A text, whatever the case of its letters.
    Text(String),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Ok(match parse::test(text)? {
            Test::Always => Self::All,
            Test::Accepted(true) => Self::Accept,
            Test::Accepted(false) => Self::Reject,
            test => Self::Where(Arc::new(test)),
        })
    }
}

impl Filter {
    /// Whether a record is meant.
    pub fn matches(&self, line: &Line<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Accept => line.window.refused.is_none(),
            Self::Reject => line.window.refused.is_some(),
            Self::Where(test) => test.holds(line),
        }
    }
}

impl Test {
    fn holds(&self, line: &Line<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::Accepted(accepted) => line.window.refused.is_none() == *accepted,
            Self::OneOf(field, wanted) => {
                let value = line.value(*field);
                wanted.iter().any(|wanted| wanted.is(value))
            }
            Self::Within(field, range) => {
                matches!(line.value(*field), Value::Number(number) if range.contains(&number))
            }
            Self::Host(end, prefixes) => {
                let is_one = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
                end.of(line, |tuple| [tuple.source, tuple.destination]).any(|address| is_one(&address))
            }
            Self::Port(end, ports) => {
                let is_one = |port: &u16| ports.iter().any(|range| range.contains(port));
                end.of(line, |tuple| [tuple.source_port, tuple.destination_port]).any(|port| is_one(&port))
            }
            Self::Not(test) => !test.holds(line),
            Self::And(tests) => tests.iter().all(|test| test.holds(line)),
            Self::Or(tests) => tests.iter().any(|test| test.holds(line)),
        }
    }
}

impl End {
    fn of<T>(self, line: &Line<'_>, both: impl Fn(&Tuple) -> [T; 2]) -> impl Iterator<Item = T> {
        let (before, after) = (both(&line.window.arrived), both(&line.window.left));
        let all = before.into_iter().chain(after).enumerate();
        all.filter(move |(at, _)| match self {
            Self::Source => at % 2 == 0,
            Self::Destination => at % 2 == 1,
            Self::Any => true,
        })
        .map(|(_, value)| value)
    }
}

impl Wanted {
    fn is(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::None, Value::None) => true,
            (Self::Numbers(range), Value::Number(number)) => range.contains(&number),
            (Self::Addresses(prefix), Value::Address(address)) => prefix.contains(&address),
            (Self::Text(wanted), Value::Text(text)) => wanted.eq_ignore_ascii_case(text),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Direction, Interface, Interfaces, Window};
    use forwarder_ebpf::verdict::Drop;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A client's TCP to port 443, translated, seen where it came in.
    fn holds(filter: &str, refused: Option<Drop>) -> bool {
        let arrived = Tuple {
            source: ip("10.0.1.5"),
            destination: ip("203.0.113.5"),
            source_port: 40_000,
            destination_port: 443,
        };
        let left = Tuple { source: ip("198.51.100.10"), source_port: 1024, ..arrived };
        let window = Window { arrived, left, protocol: 6, packets: 20, bytes: 4249, refused, ..Window::default() };
        let (interface, names) = (Interface { name: "ens6".to_owned(), ..Interface::default() }, Interfaces::default());
        let line = Line { window: &window, direction: Direction::Ingress, interface: &interface, names: &names };
        filter.parse::<Filter>().unwrap_or_else(|error| panic!("{filter}: {error}")).matches(&line)
    }

    #[test]
    fn records_are_chosen_by_their_fields() {
        let yes = [
            "all",
            "accept",
            "srcaddr 10.0.1.0/24 and dstport 443 and action ACCEPT",
            "srcaddr=10.0.1.5&&dstport=443",
            "dstaddr 192.0.2.1,203.0.113.0/24",
            "dstport 80,440-450",
            "protocol 6 and protocol tcp and tcp",
            "bytes >= 4249 and packets < 21",
            "bytes > 4248 and packets <= 20",
            "nat-srcaddr 198.51.100.10 and interface-name ENS6",
            "drop-reason - and vpc-id -",
            "drop-reason != policy",
            "host 198.51.100.10 and src 10.0.1.5 and dst net 203.0.113.0/24 and src port 1024",
            "not (udp or port 53)",
            "udp and accept or tcp",
            "udp or accept and tcp",
            "not not tcp",
            "! udp",
        ];
        for filter in yes {
            assert!(holds(filter, None), "{filter}");
            assert!(!holds(&format!("not ({filter})"), None), "not ({filter})");
        }
        let no =
            ["reject", "dst host 10.0.1.5", "dst port 40000", "rule-name x", "bytes < 4249", "tcp and udp or icmp"];
        for filter in no {
            assert!(!holds(filter, None), "{filter}");
        }
        assert!(holds("action reject and drop-reason policy", Some(Drop::Policy)));
    }

    #[test]
    fn simple_ones_are_known_as_such() {
        assert_eq!(
            ["all", "accept", "reject"].map(str::parse),
            [Ok(Filter::All), Ok(Filter::Accept), Ok(Filter::Reject)]
        );
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be() {
        let refused = [
            ("", "is empty"),
            ("dstport", "after `dstport`"),
            ("dstport https", "`https`"),
            ("srcaddr 10.0.1", "`10.0.1`"),
            ("nonsense 1", "`nonsense`"),
            ("tcp and", "ends"),
            ("(tcp", "`)`"),
            ("tcp udp", "`udp`"),
            ("action > REJECT", "number"),
            ("port 70000", "`70000`"),
        ];
        for (filter, what) in refused {
            let error = filter.parse::<Filter>().expect_err(filter).to_string();
            assert!(error.contains(what), "{filter}: {error}");
        }
        let deep = "(".repeat(10_000);
        assert!(deep.parse::<Filter>().is_err());
    }
}
