//! The paths through the datapath, and for each the frames that take it.

use super::bed::{Bed, Filling, HOST, INSIDE_MAC, INSIDE_SLOT, OUTSIDE_MAC, OUTSIDE_SLOT, STATION_MAC};
use super::flows::{Tuple, Tuple4, Tuple6, inside4, inside6, mix, outside4};
use forwarder_ebpf::verdict::{Drop, Pass};
use forwarder_kit::Packet;
use forwarder_kit::packet::{flag, quote};
use std::net::Ipv6Addr;

/// TTL of frames: the most hops that one frame can be led through the table.
pub const TTL: u8 = 255;
/// UDP payload that makes an IPv4 frame 60 bytes, the shortest that Ethernet has without its check sequence.
const PAYLOAD: usize = 60 - 14 - 20 - 8;
/// Inside hosts whose connections begin while it is measured: 10.66.0.0/16.
const NEWCOMERS: u32 = 0x0a42_0000;

/// A path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// IPv4 UDP of a known flow, from inside.
    Udp4Out,
    /// Its answers.
    Udp4Back,
    /// IPv4 TCP of a known flow, from inside.
    Tcp4Out,
    /// Its answers.
    Tcp4Back,
    /// IPv6 UDP of a known flow, from inside; not translated.
    Udp6,
    /// The first packet of an IPv4 UDP flow: rules, route, port allocation, two entries.
    New4,
    /// The first packet of an IPv6 UDP flow: rules, route, two entries.
    New6,
    /// From outside, belongs to no flow, and the policy refuses it.
    Deny,
    /// An ICMP error about a known flow, translated outside and inside.
    Related,
    /// Its TTL ends here: answered with an ICMP error.
    Expired,
    /// Addressed to the host itself.
    Host,
    /// Its IP length is more than there is.
    Malformed,
}

/// How a path can be measured; see [`super::measure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One frame, led from connection to connection by the rewriting.
    Chain,
    /// A call for each packet, less what a call costs.
    Calls,
}

impl Path {
    /// All, in the order they are shown.
    pub const ALL: [Self; 12] = [
        Self::Udp4Out,
        Self::Udp4Back,
        Self::Tcp4Out,
        Self::Tcp4Back,
        Self::Udp6,
        Self::New4,
        Self::New6,
        Self::Deny,
        Self::Related,
        Self::Expired,
        Self::Host,
        Self::Malformed,
    ];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp4Out => "established IPv4 UDP, out",
            Self::Udp4Back => "established IPv4 UDP, back",
            Self::Tcp4Out => "established IPv4 TCP, out",
            Self::Tcp4Back => "established IPv4 TCP, back",
            Self::Udp6 => "established IPv6 UDP",
            Self::New4 => "new flow, IPv4 UDP with NAT",
            Self::New6 => "new flow, IPv6 UDP",
            Self::Deny => "denied by policy",
            Self::Related => "ICMP error, translated",
            Self::Expired => "TTL exceeded, answered",
            Self::Host => "passed to the host",
            Self::Malformed => "malformed, dropped",
        }
    }

    /// How it is measured.
    pub fn method(self) -> Method {
        match self {
            Self::Udp4Out | Self::Udp4Back | Self::Tcp4Out | Self::Tcp4Back => Method::Chain,
            _ => Method::Calls,
        }
    }

    /// Where it can be measured.
    pub fn filling(self) -> Filling {
        if matches!(self, Self::Tcp4Out | Self::Tcp4Back) { Filling::Tcp } else { Filling::Udp }
    }

    /// Whether its frames are IPv6.
    pub fn is_ipv6(self) -> bool {
        matches!(self, Self::Udp6 | Self::New6)
    }

    /// Whether its frames come from outside.
    pub fn enters_outside(self) -> bool {
        matches!(self, Self::Udp4Back | Self::Tcp4Back | Self::Deny | Self::Related)
    }

    /// Slot that its frames enter by, and the outcome that they are counted as.
    pub fn counted_as(self) -> (u8, u32) {
        let slot = if self.enters_outside() { OUTSIDE_SLOT } else { INSIDE_SLOT };
        let outcome = match self {
            Self::Udp4Out | Self::Tcp4Out | Self::Udp6 | Self::New4 | Self::New6 => OUTSIDE_SLOT.into(),
            Self::Udp4Back | Self::Tcp4Back | Self::Related => INSIDE_SLOT.into(),
            Self::Deny => Drop::Policy.outcome(),
            Self::Expired => Drop::TtlExceeded.outcome(),
            Self::Host => Pass::Host.outcome(),
            Self::Malformed => Drop::Malformed.outcome(),
        };
        (slot, outcome)
    }

    /// Interface index that its frames enter by.
    pub fn ingress(self, bed: &Bed) -> u32 {
        if self.enters_outside() { bed.outside } else { bed.inside }
    }

    /// A frame that takes it. `number` is a connection of the table where the path has one, else any number; numbers that
    /// differ make flows that differ.
    pub fn frame(self, number: u32) -> Vec<u8> {
        let tuple = self.tuple4(number);
        let (station, inside, outside) = (STATION_MAC, INSIDE_MAC, OUTSIDE_MAC);
        let packet = match self {
            Self::Udp4Out | Self::New4 => udp(between4(&tuple), &tuple).macs(station, inside),
            Self::Udp4Back | Self::Deny => udp(between4(&tuple), &tuple).macs(station, outside),
            Self::Tcp4Out => tcp(&tuple).macs(station, inside),
            Self::Tcp4Back => tcp(&tuple).macs(station, outside),
            Self::Udp6 => udp6(&inside6(number)).macs(station, inside),
            Self::New6 => udp6(&newcomer6(number)).macs(station, inside),
            Self::Related => {
                let about = udp(between4(&tuple), &tuple).build();
                // From a router on the way; quotes what the client sent, as it left.
                let error = Packet::ipv4([198, 19, 0, 1], tuple.source);
                error.ttl(TTL).time_exceeded(quote(&about, 28)).macs(station, outside)
            }
            Self::Expired => udp(between4(&tuple), &tuple).ttl(1).macs(station, inside),
            Self::Host | Self::Malformed => udp(between4(&tuple), &tuple).macs(station, inside),
        };
        let mut frame = packet.build();
        if self == Self::Malformed {
            frame[16..18].copy_from_slice(&u16::MAX.to_be_bytes());
        }
        frame
    }

    /// Addresses and ports of an IPv4 frame; for an ICMP error those of the packet that it is about, as it left.
    pub fn tuple4(self, number: u32) -> Tuple4 {
        match self {
            Self::Udp4Back | Self::Tcp4Back => outside4(number),
            Self::Related => super::flows::reversed(&outside4(number)),
            Self::New4 => Tuple { source: (NEWCOMERS | (number % 65_536)).to_be_bytes(), ..inside4(number) },
            Self::Deny => {
                Tuple { destination: inside4(number).source, source_port: mix(number) as u16, ..outside4(number) }
            }
            Self::Host => Tuple { destination: HOST, destination_port: 9, ..inside4(number) },
            _ => inside4(number),
        }
    }
}

/// A connection that is not in the table.
pub fn newcomer6(number: u32) -> Tuple6 {
    let source = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x66, number as u16).octets();
    Tuple { source, ..inside6(number) }
}

fn between4(tuple: &Tuple4) -> Packet {
    Packet::ipv4(tuple.source, tuple.destination).ttl(TTL)
}

fn udp<A>(packet: Packet, tuple: &Tuple<A>) -> Packet {
    packet.udp(tuple.source_port, tuple.destination_port).payload_of(PAYLOAD)
}

fn tcp(tuple: &Tuple4) -> Packet {
    between4(tuple).tcp(tuple.source_port, tuple.destination_port, flag::ACK, 1).payload_of(PAYLOAD)
}

fn udp6(tuple: &Tuple6) -> Packet {
    udp(Packet::ipv6(tuple.source, tuple.destination).ttl(TTL), tuple)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_kit::packet::{Summary, verify_checksums};
    use std::collections::HashSet;

    #[test]
    fn frames_of_different_numbers_are_of_different_flows_and_whole() {
        for path in Path::ALL {
            let frames: HashSet<_> = (0..500).map(|number| path.frame(number)).collect();
            assert_eq!(frames.len(), 500, "{path:?}");
            for frame in frames.iter().filter(|_| path != Path::Malformed) {
                verify_checksums(frame).unwrap();
            }
        }
        assert_eq!(Path::Udp4Out.frame(0).len(), 60);
    }

    #[test]
    fn an_error_quotes_what_left_for_the_remote() {
        let frame = Path::Related.frame(7);
        let (outer, quoted) = (Summary::of(&frame).unwrap(), Summary::of_quoted(&frame).unwrap());
        assert_eq!(outer.destination, quoted.source);
        let back = Summary::of(&Path::Udp4Back.frame(7)).unwrap();
        assert_eq!((quoted.source, quoted.destination), (back.destination, back.source));
    }
}
