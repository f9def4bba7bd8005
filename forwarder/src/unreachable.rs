//! What the sender of a frame is told whose next hop does not answer: ICMP host unreachable, ICMPv6 address unreachable
//! (RFC 1812 §4.3.3.1, RFC 4443 §3.1), as the kernel does when it gives up (`arp_error_report`, `ndisc_error_report`).
//!
//! Byte for byte what the datapath's own answers are, and by the same rules: nothing about ICMP errors and later fragments,
//! and at a bounded rate.

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type, IpDscp, IpHeaders, Ipv4Header, Ipv6ExtensionSlice, Ipv6Header};
use etherparse::{LaxIpv4Slice, LaxIpv6Slice, LaxNetSlice, LaxSlicedPacket, LinkSlice, PacketBuilder};
use forwarder_ebpf::abi::IfaceConfig;
use forwarder_ebpf::wire::{ETHERNET, icmp, ipv4, ipv6, protocol};
use std::time::{Duration, Instant};

/// Most bytes of an answer (RFC 1812 §4.3.2.3).
const MOST4: usize = 576;
/// Most bytes of an answer (RFC 4443 §2.4 (c)).
const MOST6: usize = 1280;

/// The frame that tells the sender of `frame`, to go out by the interface that it came by. `None`: it must not be told, or
/// the interface has no address to say it from.
pub fn answer(frame: &[u8], own: &IfaceConfig) -> Option<Vec<u8>> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else { return None };
    let builder = PacketBuilder::ethernet2(own.mac, ethernet.source());
    let mut answer = Vec::new();
    match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) if own.address4 != [0; 4] && may_be_answered4(ip) => {
            let headers = IpHeaders::Ipv4(header4(own.address4, ip.header().source()), Default::default());
            let what = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
            let room = MOST4 - ipv4::HEADER - icmp::HEADER;
            let quote = quoted(frame, usize::from(ip.header().total_len()), room)?;
            builder.ip(headers).icmpv4(what).write(&mut answer, quote).ok()?;
        }
        LaxNetSlice::Ipv6(ip) if own.address6 != [0; 16] && may_be_answered6(ip) => {
            let headers = IpHeaders::Ipv6(header6(own.address6, ip.header().source()), Default::default());
            let what = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address);
            let room = MOST6 - ipv6::HEADER - icmp::HEADER;
            let quote = quoted(frame, ipv6::HEADER + usize::from(ip.header().payload_length()), room)?;
            builder.ip(headers).icmpv6(what).write(&mut answer, quote).ok()?;
        }
        _ => return None,
    }
    Some(answer)
}

fn may_be_answered4(ip: &LaxIpv4Slice<'_>) -> bool {
    let kind = ip.payload().payload.first().copied();
    let is_echo = matches!(kind, Some(icmp::v4::ECHO | icmp::v4::ECHO_REPLY));
    ip.header().fragments_offset().value() == 0 && (ip.header().protocol().0 != protocol::ICMP || is_echo)
}

fn may_be_answered6(ip: &LaxIpv6Slice<'_>) -> bool {
    let is_later = |extension| match extension {
        Ipv6ExtensionSlice::Fragment(fragment) => fragment.fragment_offset().value() != 0,
        _ => false,
    };
    let kind = ip.payload().payload.first().copied();
    let is_echo = matches!(kind, Some(icmp::v6::ECHO | icmp::v6::ECHO_REPLY));
    !ip.extensions().clone().into_iter().any(is_later) && (ip.payload().ip_number.0 != protocol::ICMPV6 || is_echo)
}

/// As the datapath's answers have it: internetwork control (RFC 1812 §4.3.2.5), identification 0 with DF.
fn header4(source: [u8; 4], destination: [u8; 4]) -> Ipv4Header {
    Ipv4Header {
        time_to_live: 64,
        dscp: IpDscp::CS6,
        dont_fragment: true,
        source,
        destination,
        ..Ipv4Header::default()
    }
}

fn header6(source: [u8; 16], destination: [u8; 16]) -> Ipv6Header {
    Ipv6Header { hop_limit: 64, source, destination, ..Ipv6Header::default() }
}

/// The packet of `total` bytes in the frame, as much of it as there is room for, in whole words.
fn quoted(frame: &[u8], total: usize, room: usize) -> Option<&[u8]> {
    frame.get(ETHERNET..ETHERNET + (total.min(room) & !3))
}

/// How many answers may still be sent: the controller counts as one more CPU.
#[derive(Debug)]
pub struct Budget {
    per_second: u32,
    left: u32,
    since: Instant,
}

impl Budget {
    /// So many in each second.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, left: per_second, since: now }
    }

    /// Takes one; false when they are used up.
    pub fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.left, self.since) = (self.per_second, now);
        }
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_and_no_more() {
        let begun = Instant::now();
        let mut budget = Budget::new(2, begun);
        assert!(budget.take(begun) && budget.take(begun) && !budget.take(begun));
        assert!(!budget.take(begun + Duration::from_millis(999)));
        let later = begun + Duration::from_secs(1);
        assert!(budget.take(later) && budget.take(later) && !budget.take(later));
        assert!(!Budget::new(0, begun).take(later));
    }
}
