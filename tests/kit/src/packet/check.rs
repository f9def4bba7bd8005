//! The independent judge of checksums (RFC 1071): every sum is computed again from the bytes, the quoted ones included.
//!
//! Not judged: anything that is not complete in the frame, such as the transport of a fragment or of a short quotation.

use super::protocol;

/// Recomputes all checksums of a frame: IPv4 header, TCP, UDP, ICMP, ICMPv6, and inside an ICMP error the quoted IPv4
/// header and, when it is quoted whole, the quoted transport. Frames that are not IP are fine.
///
/// # Errors
/// A sentence that names the sum, what it should be and what it is; or the header that does not fit the frame.
pub fn verify_checksums(frame: &[u8]) -> Result<(), String> {
    let packet = frame.get(super::ETHERNET..).ok_or("frame shorter than an Ethernet header")?;
    match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0800 => verify_v4(packet, false),
        0x86dd => verify_v6(packet, false),
        _ => Ok(()),
    }
}

fn verify_v4(packet: &[u8], quoted: bool) -> Result<(), String> {
    let what = if quoted { "quoted IPv4" } else { "IPv4" };
    let header_length = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    if packet.len() < 20 || packet[0] >> 4 != 4 || header_length < 20 || packet.len() < header_length {
        return Err(format!("{what}: header does not fit"));
    }
    expect_sum(&format!("{what} header"), &[&packet[..10], &[0, 0], &packet[12..header_length]], be16(packet, 10))?;
    let total = usize::from(be16(packet, 2));
    if total < header_length {
        return Err(format!("{what}: total length {total} is shorter than the header"));
    }
    let Some(segment) = packet.get(header_length..total) else {
        return if quoted { Ok(()) } else { Err(format!("{what}: total length {total} exceeds the frame")) };
    };
    if be16(packet, 6) & 0x3fff != 0 {
        return Ok(());
    }
    let pseudo = [&packet[12..20], &[0, packet[9]], &(segment.len() as u16).to_be_bytes()].concat();
    verify_segment(packet[9], segment, &pseudo, Family { v4: true, quoted })
}

fn verify_v6(packet: &[u8], quoted: bool) -> Result<(), String> {
    let what = if quoted { "quoted IPv6" } else { "IPv6" };
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Err(format!("{what}: header does not fit"));
    }
    let total = 40 + usize::from(be16(packet, 4));
    if packet.len() < total {
        return if quoted { Ok(()) } else { Err(format!("{what}: payload length {total} exceeds the frame")) };
    }
    let (mut next, mut at) = (packet[6], 40);
    while matches!(next, 0 | 43 | 44 | 60) {
        if at + 8 > total {
            return Err(format!("{what}: extension header {next} does not fit"));
        }
        if next == protocol::FRAGMENT && be16(packet, at + 2) & 0xfff9 != 0 {
            return Ok(());
        }
        let length = if next == protocol::FRAGMENT { 8 } else { 8 + usize::from(packet[at + 1]) * 8 };
        next = packet[at];
        at += length;
    }
    let segment = packet.get(at..total).ok_or_else(|| format!("{what}: extension headers exceed the packet"))?;
    let length = (segment.len() as u32).to_be_bytes();
    let pseudo = [&packet[8..40], &length, &[0, 0, 0, next]].concat();
    verify_segment(next, segment, &pseudo, Family { v4: false, quoted })
}

#[derive(Clone, Copy)]
struct Family {
    v4: bool,
    quoted: bool,
}

fn verify_segment(number: u8, segment: &[u8], pseudo: &[u8], family: Family) -> Result<(), String> {
    let quoted = if family.quoted { "quoted " } else { "" };
    let (name, at, minimum, pseudo) = match (number, family.v4) {
        (protocol::TCP, _) => ("TCP", 16, 20, pseudo),
        (protocol::UDP, _) => ("UDP", 6, 8, pseudo),
        (protocol::ICMP, true) => ("ICMP", 2, 8, &[][..]),
        (protocol::ICMPV6, false) => ("ICMPv6", 2, 8, pseudo),
        _ => return Ok(()),
    };
    if segment.len() < minimum {
        return Err(format!("{quoted}{name}: {} bytes are too few for its header", segment.len()));
    }
    if number == protocol::UDP {
        if usize::from(be16(segment, 4)) != segment.len() {
            return Err(format!("{quoted}UDP: length {} in {} bytes", be16(segment, 4), segment.len()));
        }
        if be16(segment, 6) == 0 {
            return if family.v4 { Ok(()) } else { Err(format!("{quoted}UDP: zero checksum over IPv6")) };
        }
    }
    let parts = [pseudo, &segment[..at], &[0, 0], &segment[at + 2..]];
    expect_sum(&format!("{quoted}{name}"), &parts, be16(segment, at))?;
    let is_error = match number {
        protocol::ICMP => matches!(segment[0], 3 | 4 | 5 | 11 | 12),
        protocol::ICMPV6 => segment[0] < 128,
        _ => false,
    };
    if !is_error || family.quoted {
        return Ok(());
    }
    if family.v4 { verify_v4(&segment[8..], true) } else { verify_v6(&segment[8..], true) }
}

/// Every part but the last has an even length, so they sum as one. A sum of zero is written 0xffff in UDP only, but both
/// spellings of zero are equal in one's complement.
fn expect_sum(what: &str, parts: &[&[u8]], found: u16) -> Result<(), String> {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let expected = !(sum as u16);
    if expected % 0xffff == found % 0xffff {
        return Ok(());
    }
    Err(format!("{what} checksum is {found:#06x}, the bytes sum to {expected:#06x}"))
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::verify_checksums;
    use crate::packet::{Packet, flag, quote};

    fn samples() -> Vec<Packet> {
        let v4 = || Packet::between("10.0.1.10", "203.0.113.10");
        let v6 = || Packet::between("2001:db8:1::10", "2001:db8:3::10");
        let mut samples = Vec::new();
        for base in [v4, v6 as fn() -> Packet] {
            samples.push(base().tcp(40000, 443, flag::SYN, 1).tcp_options(&[2, 4, 5, 180]));
            samples.push(base().tcp(40000, 443, flag::PSH | flag::ACK, 1).payload_of(33));
            samples.push(base().udp(5000, 53).payload_of(7));
            samples.push(base().udp(5000, 53));
            samples.push(base().echo_request(7, 1).payload_of(56));
            samples.push(base().echo_reply(7, 1).payload_of(55));
            samples.push(base().time_exceeded(quote(&base().udp(1, 2).payload_of(40).build(), 48)));
            samples.push(base().unreachable(3, quote(&base().tcp(1, 2, flag::ACK, 9).payload_of(99).build(), 1500)));
            samples.push(base().too_big(1280, quote(&base().udp(1, 2).payload_of(40).build(), 1500)));
        }
        samples.push(v4().options(&[7, 7, 4, 0, 0, 0, 0, 0]).id(9).df().udp(1, 2).payload_of(3));
        samples.push(v6().extension(0, &[]).extension(60, &[1, 0]).flow_label(0xbeef).udp(1, 2).payload_of(3));
        samples
    }

    #[test]
    fn what_the_builder_makes_is_right_with_and_without_padding() {
        for packet in samples() {
            verify_checksums(&packet.build()).unwrap();
            verify_checksums(&packet.trailing(13).build()).unwrap();
        }
    }

    /// Every bit that a checksum covers is missed when it flips. Bits that change what is checked (lengths, versions,
    /// fragments, next headers) may turn the frame into another valid one, so only the rest is flipped.
    #[test]
    fn a_flipped_payload_address_or_port_is_noticed() {
        for packet in samples() {
            let frame = packet.payload(b"some payload").build();
            let addresses = if frame[14] >> 4 == 4 { 26..34 } else { 22..54 };
            for at in addresses.chain(frame.len() - 12..frame.len()) {
                let icmp_v4 = frame[14] >> 4 == 4 && frame[23] == 1;
                let mut wrong = frame.clone();
                wrong[at] ^= 0x10;
                assert!(
                    verify_checksums(&wrong).is_err(),
                    "byte {at}, ICMP {icmp_v4}: {}",
                    super::super::describe(&frame)
                );
            }
        }
    }

    #[test]
    fn a_wrong_quotation_is_noticed() {
        let inner = Packet::between("10.0.1.10", "203.0.113.10").udp(1, 2).payload_of(40);
        for (at, text) in [(12, "quoted IPv4 header"), (40, "quoted UDP")] {
            let mut quoted = quote(&inner.build(), 1500).to_vec();
            quoted[at] ^= 1;
            let frame = Packet::between("198.51.100.1", "198.51.100.10").time_exceeded(&quoted).build();
            assert!(verify_checksums(&frame).unwrap_err().starts_with(text));
        }
    }

    #[test]
    fn udp_without_checksum_is_for_ipv4_only() {
        verify_checksums(&Packet::between("10.0.0.1", "10.0.0.2").udp(1, 2).without_checksum().build()).unwrap();
        let v6 = Packet::between("2001:db8::1", "2001:db8::2").udp(1, 2).without_checksum().build();
        assert!(verify_checksums(&v6).unwrap_err().contains("zero checksum"));
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        let frame = Packet::between("10.0.0.1", "10.0.0.2").options(&[1; 4]).tcp(1, 2, 0, 0).payload_of(20).build();
        for length in 0..frame.len() {
            assert!(verify_checksums(&frame[..length]).is_err() || length == frame.len());
        }
        verify_checksums(&[0; 14]).unwrap();
    }
}
