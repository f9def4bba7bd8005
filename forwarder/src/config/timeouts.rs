//! `[timeouts]`: how long a connection, or a fragment train, may be idle before it is forgotten.
//!
//! Names and defaults are those of an ENI's connection tracking where it has them, so that a connection through
//! forwarder lives as long as one through a NAT gateway:
//!
//! | key | default | why |
//! | --- | --- | --- |
//! | `tcp_established` | 350 s | NAT gateway, and the ENI of Nitro v6 types. RFC 5382 REQ-5 asks for 2 h 4 min |
//! | `tcp_transitory` | 240 s | RFC 5382 REQ-5, RFC 7857 §2.1: opening, closing and reset connections |
//! | `udp_stream` | 180 s | ENI: more than one request and response |
//! | `udp` | 30 s | ENI: one-way, or a single request and response. RFC 4787 REQ-5 asks for 2 min |
//! | `icmp` | 60 s | RFC 5508 REQ-2: at least 60 s |
//! | `other` | 600 s | Linux (`nf_conntrack_generic_timeout`): tunnels say little |
//! | `fragment` | 15 s | RFC 791 §3.2; longer only helps a reused identification find the wrong flow (RFC 4963) |

use super::document::Section;
use super::error::Result;
use forwarder_ebpf::conntrack::Class;
use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) const KEYS: &[&str] =
    &["tcp_established", "tcp_transitory", "udp_stream", "udp", "icmp", "other", "fragment"];

/// Five days: the ENI's longest, and Linux's default for established TCP.
const DAYS_5_S: u64 = 5 * 24 * 3600;
/// What is not an established connection is not kept for more than an hour: a scan would fill the table.
const HOUR_S: u64 = 3600;
/// RFC 1122 §3.3.2 has nobody wait for fragments for more than two minutes.
const FRAGMENT_S: u64 = 120;

/// `[timeouts]`. All times are idle times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP after its handshake; 1 s to 5 days.
    pub tcp_established: Duration,
    /// TCP that opens or closes; 1 s to 1 h.
    pub tcp_transitory: Duration,
    /// UDP with more than one request and response; 1 s to 1 h.
    pub udp_stream: Duration,
    /// UDP one-way, or a single request and response; 1 s to 1 h.
    pub udp: Duration,
    /// ICMP and ICMPv6 echo; 1 s to 1 h.
    pub icmp: Duration,
    /// All other protocols; 1 s to 5 days.
    pub other: Duration,
    /// Fragments after their first; 1 s to 2 min.
    pub fragment: Duration,
}

impl Default for Timeouts {
    /// The table above says why.
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(350),
            tcp_transitory: Duration::from_secs(240),
            udp_stream: Duration::from_secs(180),
            udp: Duration::from_secs(30),
            icmp: Duration::from_secs(60),
            other: Duration::from_secs(600),
            fragment: Duration::from_secs(15),
        }
    }
}

impl Timeouts {
    /// How long a connection of this class may be idle.
    pub const fn of(&self, class: Class) -> Duration {
        match class {
            Class::TcpEstablished => self.tcp_established,
            Class::TcpTransitory => self.tcp_transitory,
            Class::UdpStream => self.udp_stream,
            Class::Udp => self.udp,
            Class::Icmp => self.icmp,
            Class::Other => self.other,
        }
    }

    /// All of them by their keys, in the order of the documentation.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let mut own = self.clone();
        KEYS.iter().map(move |key| (*key, *own.entry(key).0))
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let mut timeouts = Self::default();
        for key in KEYS {
            if let Some(field) = section.take(key) {
                let (timeout, allowed_s) = timeouts.entry(key);
                *timeout = field.duration(&allowed_s)?;
            }
        }
        Ok(timeouts)
    }

    /// The timeout of one of `KEYS`, and its range in seconds.
    fn entry(&mut self, key: &str) -> (&mut Duration, RangeInclusive<u64>) {
        match key {
            "tcp_established" => (&mut self.tcp_established, 1..=DAYS_5_S),
            "tcp_transitory" => (&mut self.tcp_transitory, 1..=HOUR_S),
            "udp_stream" => (&mut self.udp_stream, 1..=HOUR_S),
            "udp" => (&mut self.udp, 1..=HOUR_S),
            "icmp" => (&mut self.icmp, 1..=HOUR_S),
            "fragment" => (&mut self.fragment, 1..=FRAGMENT_S),
            _ => (&mut self.other, 1..=DAYS_5_S),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_and_key_has_its_own() {
        let timeouts = Timeouts {
            tcp_established: Duration::from_secs(1),
            tcp_transitory: Duration::from_secs(2),
            udp_stream: Duration::from_secs(3),
            udp: Duration::from_secs(4),
            icmp: Duration::from_secs(5),
            other: Duration::from_secs(6),
            fragment: Duration::from_secs(7),
        };
        let classes =
            [Class::TcpEstablished, Class::TcpTransitory, Class::UdpStream, Class::Udp, Class::Icmp, Class::Other];
        assert_eq!(classes.map(|class| timeouts.of(class).as_secs()), [1, 2, 3, 4, 5, 6]);
        let named: Vec<_> = timeouts.named().map(|(key, timeout)| (key, timeout.as_secs())).collect();
        let expected = [
            ("tcp_established", 1),
            ("tcp_transitory", 2),
            ("udp_stream", 3),
            ("udp", 4),
            ("icmp", 5),
            ("other", 6),
            ("fragment", 7),
        ];
        assert_eq!(named, expected);
    }
}
