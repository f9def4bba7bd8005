//! ICMP errors to the sender of a frame that goes no further: the frame itself becomes the error and goes back.
//!
//! The stage that decides asks; the `Answer` stages build. RFC 1812 §4.3.2 and RFC 4443 §2.4: never about an ICMP error, a
//! later fragment or a group, and at a bounded rate. The quotation is as long as the RFCs allow (576 and 1,280 bytes in all).

use crate::abi::{Control, IfaceConfig, Ticks};
use crate::flow::Packet;
use crate::frame::Frame;
use crate::tables::{Answer, Tables};
use crate::verdict::{Drop, Verdict};
use crate::wire::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, checksum, icmp, ipv4, ipv6, protocol};

/// What is wrong, before it has a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// TTL or hop limit used up.
    TimeExceeded,
    /// Larger than this MTU, bytes.
    TooBig(u16),
    /// No route.
    NoRoute,
    /// The route is unreachable.
    HostUnreachable,
    /// Administratively prohibited.
    Prohibited,
}

impl Problem {
    /// As an ICMP error.
    #[inline(always)]
    pub(crate) fn icmp4(self, reason: Drop) -> Answer {
        use icmp::v4::{FRAGMENTATION_NEEDED, HOST, NET, PROHIBITED, TIME_EXCEEDED, UNREACHABLE};
        let (kind, code, info) = match self {
            Self::TimeExceeded => (TIME_EXCEEDED, 0, 0),
            Self::TooBig(mtu) => (UNREACHABLE, FRAGMENTATION_NEEDED, u32::from(mtu)),
            Self::NoRoute => (UNREACHABLE, NET, 0),
            Self::HostUnreachable => (UNREACHABLE, HOST, 0),
            Self::Prohibited => (UNREACHABLE, PROHIBITED, 0),
        };
        Answer { kind, code, info, reason }
    }

    /// As an ICMPv6 error.
    #[inline(always)]
    pub(crate) fn icmp6(self, reason: Drop) -> Answer {
        use icmp::v6::{ADDRESS, NO_ROUTE, PROHIBITED, TIME_EXCEEDED, TOO_BIG, UNREACHABLE};
        let (kind, code, info) = match self {
            Self::TimeExceeded => (TIME_EXCEEDED, 0, 0),
            Self::TooBig(mtu) => (TOO_BIG, 0, u32::from(mtu)),
            Self::NoRoute => (UNREACHABLE, NO_ROUTE, 0),
            Self::HostUnreachable => (UNREACHABLE, ADDRESS, 0),
            Self::Prohibited => (UNREACHABLE, PROHIBITED, 0),
        };
        Answer { kind, code, info, reason }
    }
}

/// Ends the packet for `reason`, and lets its sender know where that is allowed.
#[inline(always)]
pub(crate) fn ask<P: Packet, T: Tables>(tables: &T, packet: &P, problem: Problem, reason: Drop) -> Verdict {
    if !packet.may_be_answered() {
        return Verdict::Drop(reason);
    }
    tables.set_answer(packet.answer(problem, reason));
    Verdict::Next(P::ANSWER)
}

/// Quoted bytes of the offending IPv4 packet: 576 in all (RFC 1812 §4.3.2.3).
const QUOTE4: usize = 576 - ipv4::HEADER - icmp::HEADER;
/// Quoted bytes of the offending IPv6 packet: 1,280 in all (RFC 4443 §2.4 (c)).
const QUOTE6: usize = 1280 - ipv6::HEADER - icmp::HEADER;

/// The sum over `words` 32-bit words from `start`.
#[inline(always)]
fn sum_words<F: Frame, const MOST: usize>(frame: &mut F, start: usize, words: usize) -> Option<u64> {
    let mut sum = 0;
    let mut index = 0;
    while index < MOST {
        if index >= words {
            break;
        }
        sum = checksum::add(sum, *frame.at::<4>(start + index * 4)?);
        index += 1;
    }
    Some(sum)
}

/// Turns the frame into an ICMP error from `iface`'s address, sent back by where it came.
#[inline(always)]
pub(crate) fn build4<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    iface: &IfaceConfig,
    control: &Control,
    now: Ticks,
) -> Verdict {
    let Some(answer) = tables.answer() else { return Verdict::Drop(Drop::Internal) };
    if iface.address4 == [0; 4] || !tables.take_icmp_token(now, control) {
        return Verdict::Drop(answer.reason);
    }
    match write4(frame, iface, &answer) {
        Some(()) => Verdict::Answered(answer.reason),
        None => Verdict::Drop(answer.reason),
    }
}

/// Type of service of ICMP errors: precedence 6, internetwork control (RFC 1812 §4.3.2.5).
const ERROR_TOS: u8 = 0xc0;

/// An IPv4 header for a packet of our own making. Identification 0 with DF is fine (RFC 6864 §4.1).
#[inline(always)]
pub(crate) fn header4(tos: u8, length: u16, protocol: u8, source: [u8; 4], destination: [u8; 4]) -> [u8; 20] {
    let [length_high, length_low] = length.to_be_bytes();
    let (first, second, third) = ([0x45, tos, length_high, length_low], [0, 0, 0x40, 0], [64, protocol, 0, 0]);
    let words = [first, second, third, source, destination];
    let mut sum = 0;
    for word in words {
        sum = checksum::add(sum, word);
    }
    let mut header = [0; 20];
    let checksum = checksum::finish(sum);
    for (bytes, word) in header.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word);
    }
    [header[10], header[11]] = checksum;
    header
}

#[inline(always)]
fn write4<F: Frame>(frame: &mut F, iface: &IfaceConfig, answer: &Answer) -> Option<()> {
    const NEW: usize = ipv4::HEADER + icmp::HEADER;
    let old = *frame.at::<{ ETHERNET + ipv4::HEADER }>(0)?;
    let total = usize::from(u16::from_be_bytes([old[16], old[17]]));
    // Whole words, so that the sum needs no odd end. The shortest packet that comes here is 20 bytes.
    let quote = (if total < QUOTE4 { total } else { QUOTE4 }) & !3;
    if !frame.cut_to(ETHERNET + quote) || !frame.grow_front(NEW) {
        return None;
    }
    let header = frame.at::<{ ETHERNET + NEW }>(0)?;
    [header[0], header[1], header[2], header[3], header[4], header[5]] =
        [old[6], old[7], old[8], old[9], old[10], old[11]];
    [header[6], header[7], header[8], header[9], header[10], header[11]] = iface.mac;
    [header[12], header[13]] = ETHERTYPE_IPV4;
    let sender = [old[26], old[27], old[28], old[29]];
    let ip = header4(ERROR_TOS, (NEW + quote) as u16, protocol::ICMP, iface.address4, sender);
    header.get_mut(ETHERNET..ETHERNET + 20)?.copy_from_slice(&ip);
    let info = answer.info.to_be_bytes();
    let message = [answer.kind, answer.code, 0, 0, info[0], info[1], info[2], info[3]];
    header.get_mut(34..42)?.copy_from_slice(&message);
    let sum = sum_words::<F, { (QUOTE4 + icmp::HEADER) / 4 }>(frame, 34, (quote + icmp::HEADER) / 4)?;
    *frame.at::<2>(34 + icmp::CHECKSUM)? = checksum::finish(sum);
    Some(())
}

/// Turns the frame into an ICMPv6 error from `iface`'s address, sent back by where it came.
#[inline(always)]
pub(crate) fn build6<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    iface: &IfaceConfig,
    control: &Control,
    now: Ticks,
) -> Verdict {
    let Some(answer) = tables.answer() else { return Verdict::Drop(Drop::Internal) };
    if iface.address6 == [0; 16] || !tables.take_icmp_token(now, control) {
        return Verdict::Drop(answer.reason);
    }
    match write6(frame, iface, &answer) {
        Some(()) => Verdict::Answered(answer.reason),
        None => Verdict::Drop(answer.reason),
    }
}

#[inline(always)]
fn write6<F: Frame>(frame: &mut F, iface: &IfaceConfig, answer: &Answer) -> Option<()> {
    const NEW: usize = ipv6::HEADER + icmp::HEADER;
    let old = *frame.at::<{ ETHERNET + ipv6::HEADER }>(0)?;
    let total = ipv6::HEADER + usize::from(u16::from_be_bytes([old[18], old[19]]));
    let quote = (if total < QUOTE6 { total } else { QUOTE6 }) & !3;
    if !frame.cut_to(ETHERNET + quote) || !frame.grow_front(NEW) {
        return None;
    }
    let header = frame.at::<{ ETHERNET + NEW }>(0)?;
    header.get_mut(0..6)?.copy_from_slice(old.get(6..12)?);
    header.get_mut(6..12)?.copy_from_slice(&iface.mac);
    [header[12], header[13]] = ETHERTYPE_IPV6;
    let length = ((icmp::HEADER + quote) as u16).to_be_bytes();
    header.get_mut(14..22)?.copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], protocol::ICMPV6, 64]);
    header.get_mut(22..38)?.copy_from_slice(&iface.address6);
    header.get_mut(38..54)?.copy_from_slice(old.get(22..38)?);
    let info = answer.info.to_be_bytes();
    header.get_mut(54..62)?.copy_from_slice(&[answer.kind, answer.code, 0, 0, info[0], info[1], info[2], info[3]]);
    // The pseudo-header (RFC 8200 §8.1) is both addresses, which stand right before the message, length and protocol.
    const WORDS: usize = (32 + icmp::HEADER + QUOTE6) / 4;
    let sum = sum_words::<F, WORDS>(frame, 22, (32 + icmp::HEADER + quote) / 4)?;
    let sum = checksum::add(sum, [0, 0, length[0], length[1]]);
    let sum = checksum::add(sum, [0, 0, 0, protocol::ICMPV6]);
    *frame.at::<2>(54 + icmp::CHECKSUM)? = checksum::finish(sum);
    Some(())
}
