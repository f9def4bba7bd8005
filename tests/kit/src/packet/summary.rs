//! A frame read back: what a test compares, and one line for people. Trusts nothing; what does not fit is `None`.

use super::{ETHERNET, ip_packet, protocol};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// What an IP frame says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the transport, after IPv6 extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 "don't fragment".
    pub df: bool,
    /// Id, offset in bytes, more follow; when it is a fragment.
    pub fragment: Option<(u32, u16, bool)>,
    /// Source and destination port of TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// TCP flags and sequence number.
    pub tcp: Option<(u8, u32)>,
    /// ICMP type, code and the four bytes after the checksum.
    pub icmp: Option<(u8, u8, u32)>,
    /// Length of the IP packet in bytes.
    pub length: usize,
    segment: Range<usize>,
    payload: usize,
}

impl Summary {
    /// Reads a frame; `None` when it is not IP or its headers do not fit.
    pub fn of(frame: &[u8]) -> Option<Self> {
        Self::of_packet(ip_packet(frame)).map(|summary| summary.moved_by(ETHERNET))
    }

    /// Reads the packet that an ICMP error quotes; ports are there as soon as their eight bytes are.
    pub fn of_quoted(frame: &[u8]) -> Option<Self> {
        let outer = Self::of(frame)?;
        outer.icmp?;
        let at = outer.segment.start + 8;
        Self::of_packet(frame.get(at..outer.segment.end)?).map(|summary| summary.moved_by(at))
    }

    /// Transport header and payload.
    pub fn segment<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.segment.clone()).unwrap_or_default()
    }

    /// What follows the transport header (all of the segment for an unknown protocol or a later fragment).
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.payload..self.segment.end).unwrap_or_default()
    }

    fn moved_by(mut self, bytes: usize) -> Self {
        self.segment = self.segment.start + bytes..self.segment.end + bytes;
        self.payload += bytes;
        self
    }

    fn of_packet(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::of_v4(packet),
            6 => Self::of_v6(packet),
            _ => None,
        }
    }

    fn of_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let start = usize::from(header[0] & 15) * 4;
        let bits = u16::from_be_bytes([header[6], header[7]]);
        let (offset, more) = ((bits & 0x1fff) * 8, bits & 0x2000 != 0);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let empty = Self {
            source: Ipv4Addr::from(*header[12..].first_chunk::<4>()?).into(),
            destination: Ipv4Addr::from(*header[16..].first_chunk::<4>()?).into(),
            protocol: header[9],
            ttl: header[8],
            df: bits & 0x4000 != 0,
            fragment: (offset != 0 || more).then_some((id, offset, more)),
            ports: None,
            tcp: None,
            icmp: None,
            length,
            segment: start..length.min(packet.len()),
            payload: start,
        };
        Some(if offset == 0 { empty.with_transport(packet) } else { empty })
    }

    fn of_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = packet.first_chunk()?;
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let (mut next, mut start, mut fragment) = (header[6], 40, None);
        while matches!(next, 0 | 43 | 44 | 60) && fragment.is_none_or(|(_, offset, _)| offset == 0) {
            let extension: &[u8; 8] = packet.get(start..)?.first_chunk()?;
            if next == protocol::FRAGMENT {
                let bits = u16::from_be_bytes([extension[2], extension[3]]);
                let id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                fragment = Some((id, bits & 0xfff8, bits & 1 != 0));
                start += 8;
            } else {
                start += 8 + usize::from(extension[1]) * 8;
            }
            next = extension[0];
        }
        let empty = Self {
            source: Ipv6Addr::from(*header[8..].first_chunk::<16>()?).into(),
            destination: Ipv6Addr::from(*header[24..].first_chunk::<16>()?).into(),
            protocol: next,
            ttl: header[7],
            df: false,
            fragment,
            ports: None,
            tcp: None,
            icmp: None,
            length,
            segment: start..length.min(packet.len()),
            payload: start,
        };
        Some(if fragment.is_none_or(|(_, offset, _)| offset == 0) { empty.with_transport(packet) } else { empty })
    }

    fn with_transport(mut self, packet: &[u8]) -> Self {
        let Some(head) = packet.get(self.segment.start..).and_then(|segment| segment.first_chunk::<8>()) else {
            return self;
        };
        let ports = (u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]));
        let word = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        match self.protocol {
            protocol::TCP => {
                self.ports = Some(ports);
                if let Some(header) = packet.get(self.segment.start..).and_then(|segment| segment.first_chunk::<20>()) {
                    self.tcp = Some((header[13], word));
                    self.payload += usize::from(header[12] >> 4) * 4;
                }
            }
            protocol::UDP => {
                self.ports = Some(ports);
                self.payload += 8;
            }
            protocol::ICMP | protocol::ICMPV6 => {
                self.icmp = Some((head[0], head[1], word));
                self.payload += 8;
            }
            _ => {}
        }
        self
    }

    fn write(&self, line: &mut String) -> std::fmt::Result {
        let end = |address: IpAddr, port: Option<u16>| match (address, port) {
            (address, None) => address.to_string(),
            (address, Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
        };
        let (source, destination) = (self.ports.map(|ports| ports.0), self.ports.map(|ports| ports.1));
        write!(line, "{} > {} ", end(self.source, source), end(self.destination, destination))?;
        match (self.protocol, self.icmp) {
            (protocol::TCP, _) => line.push_str("TCP"),
            (protocol::UDP, _) => line.push_str("UDP"),
            (_, Some((kind, code, _))) => write!(line, "ICMP {kind}/{code}")?,
            (number, None) => write!(line, "protocol {number}")?,
        }
        if let Some((flags, sequence)) = self.tcp {
            let names = ["F", "S", "R", "P", "A", "U", "E", "C"];
            let set: String =
                names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, name)| *name).collect();
            write!(line, " [{set}] seq {sequence}")?;
        }
        write!(line, " ttl {} length {}", self.ttl, self.length)?;
        if self.df {
            line.push_str(" DF");
        }
        if let Some((id, offset, more)) = self.fragment {
            write!(line, " fragment {id}@{offset}{}", if more { "+" } else { "" })?;
        }
        Ok(())
    }
}

/// One line for people: addresses, ports, flags, TTL, length, fragment, and for an ICMP error what it quotes.
pub fn describe(frame: &[u8]) -> String {
    let Some(summary) = Summary::of(frame) else {
        let ether_type = frame.get(12..14).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        return format!("{} bytes, ethertype {ether_type:#06x}", frame.len());
    };
    let mut line = String::new();
    summary.write(&mut line).expect("writing into a String does not fail");
    let is_error = match (summary.protocol, summary.icmp) {
        (protocol::ICMP, Some((kind, ..))) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (protocol::ICMPV6, Some((kind, ..))) => kind < 128,
        _ => false,
    };
    if let Some(quoted) = is_error.then(|| Summary::of_quoted(frame)).flatten() {
        line.push_str(", quotes ");
        quoted.write(&mut line).expect("writing into a String does not fail");
    }
    line
}

#[cfg(test)]
mod tests {
    use crate::packet::{Packet, Summary, describe, flag, quote};

    #[test]
    fn a_line_tells_what_matters() {
        let syn = Packet::between("10.0.1.10", "203.0.113.10").df().tcp(40000, 443, flag::SYN, 7).build();
        assert_eq!(describe(&syn), "10.0.1.10:40000 > 203.0.113.10:443 TCP [S] seq 7 ttl 64 length 40 DF");
        let error = Packet::between("198.51.100.1", "10.0.1.10").time_exceeded(quote(&syn, 28)).build();
        assert_eq!(
            describe(&error),
            "198.51.100.1 > 10.0.1.10 ICMP 11/0 ttl 64 length 56, \
             quotes 10.0.1.10:40000 > 203.0.113.10:443 TCP ttl 64 length 40 DF"
        );
        let first = Packet::between("2001:db8::1", "2001:db8::2").fragment(9, 0, true).protocol(17);
        assert_eq!(
            describe(&first.payload(&[0, 1, 0, 2, 0, 8, 1, 1]).build()),
            "[2001:db8::1]:1 > [2001:db8::2]:2 UDP ttl 64 length 56 fragment 9@0+"
        );
        assert_eq!(describe(&[0; 14]), "14 bytes, ethertype 0x0000");
    }

    #[test]
    fn payload_is_found_behind_options_and_extensions() {
        for packet in [
            Packet::between("10.0.0.1", "10.0.0.2").options(&[1; 8]).tcp(1, 2, flag::ACK, 3).tcp_options(&[1; 5]),
            Packet::between("::1", "::2").extension(0, &[]).extension(60, &[1, 12]).udp(1, 2),
            Packet::between("10.0.0.1", "10.0.0.2").protocol(50),
        ] {
            let frame = packet.payload(b"hello").trailing(9).build();
            assert_eq!(Summary::of(&frame).unwrap().payload(&frame), b"hello");
        }
    }
}
