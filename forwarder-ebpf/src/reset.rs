//! TCP resets to the sender of a segment that the firewall rejects: the frame itself becomes the reset and goes back
//! (RFC 9293 §3.10.7.1, what a host answers for a port that is closed). They count against the budget of ICMP errors.

use crate::answer::header4;
use crate::firewall::Filtered;
use crate::flow::Packet;
use crate::frame::Frame;
use crate::route::Arrival;
use crate::tables::{Answer, Tables};
use crate::verdict::{Drop, Verdict};
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};
use crate::wire::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, checksum, ipv4, ipv6, protocol};

/// Bytes of a TCP header without options.
const TCP: usize = 20;

/// Ends the packet for `reason`, and lets its sender know by a reset. A reset itself is never answered.
#[inline(always)]
pub(crate) fn reset<P: Packet, T: Tables>(tables: &T, packet: &P, reason: Drop) -> Verdict {
    if packet.signal() & RST != 0 {
        return Verdict::Drop(reason);
    }
    tables.set_answer(Answer { kind: 0, code: 0, info: 0, reason });
    Verdict::Next(P::RESET)
}

/// The header of the reset that answers the segment at `l4`, checksum still 0. `bytes` are those of the segment.
#[inline(always)]
fn answer_to<F: Frame>(frame: &mut F, l4: usize, bytes: usize) -> Option<[u8; TCP]> {
    let tcp = *frame.at::<TCP>(l4)?;
    let header_bytes = usize::from(tcp[12] >> 4) * 4;
    if bytes < header_bytes || tcp[13] & RST != 0 {
        return None;
    }
    let mut answer = [0; TCP];
    [answer[0], answer[1], answer[2], answer[3]] = [tcp[2], tcp[3], tcp[0], tcp[1]];
    answer[12] = (TCP as u8 / 4) << 4;
    if tcp[13] & ACK != 0 {
        [answer[4], answer[5], answer[6], answer[7]] = [tcp[8], tcp[9], tcp[10], tcp[11]];
        answer[13] = RST;
    } else {
        let ends = u32::from(tcp[13] & SYN != 0) + u32::from(tcp[13] & FIN != 0);
        let length = (bytes - header_bytes) as u32 + ends;
        let next = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(length);
        [answer[8], answer[9], answer[10], answer[11]] = next.to_be_bytes();
        answer[13] = RST | ACK;
    }
    Some(answer)
}

/// The sum over a whole number of words.
#[inline(always)]
fn sum(mut sum: u64, bytes: &[u8]) -> u64 {
    for word in bytes.chunks_exact(4) {
        if let Ok(word) = word.try_into() {
            sum = checksum::add(sum, word);
        }
    }
    sum
}

/// Turns the frame into a reset, sent back by where it came.
#[inline(always)]
pub(crate) fn build4<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>, packet: &Packet4) -> Verdict {
    let Some(answer) = tables.answer() else { return Verdict::Drop(Drop::Internal) };
    if !tables.take_icmp_token(at.now, at.control) {
        return Verdict::Drop(answer.reason);
    }
    match write4(frame, &at.iface.mac, packet) {
        Some(()) => Verdict::Answered(answer.reason),
        None => Verdict::Drop(answer.reason),
    }
}

#[inline(always)]
fn write4<F: Frame>(frame: &mut F, mac: &[u8; 6], packet: &Packet4) -> Option<()> {
    const NEW: usize = ETHERNET + ipv4::HEADER + TCP;
    let bytes = (ETHERNET + usize::from(packet.total)).checked_sub(packet.l4())?;
    let mut tcp = answer_to(frame, packet.l4(), bytes)?;
    let old = *frame.at::<12>(0)?;
    if !frame.cut_to(NEW) {
        return None;
    }
    let ip = header4(0, (ipv4::HEADER + TCP) as u16, protocol::TCP, packet.key.destination, packet.key.source);
    let pseudo = checksum::add(sum(0, ip.get(12..20)?), [0, protocol::TCP, 0, TCP as u8]);
    [tcp[16], tcp[17]] = checksum::finish(sum(pseudo, &tcp));
    let header = frame.at::<NEW>(0)?;
    header.get_mut(0..6)?.copy_from_slice(old.get(6..12)?);
    header.get_mut(6..12)?.copy_from_slice(mac);
    [header[12], header[13]] = ETHERTYPE_IPV4;
    header.get_mut(14..34)?.copy_from_slice(&ip);
    header.get_mut(34..54)?.copy_from_slice(&tcp);
    Some(())
}

/// Turns the frame into a reset, sent back by where it came.
#[inline(always)]
pub(crate) fn build6<F: Frame, T: Tables>(frame: &mut F, tables: &T, at: &Arrival<'_>, packet: &Packet6) -> Verdict {
    let Some(answer) = tables.answer() else { return Verdict::Drop(Drop::Internal) };
    if !tables.take_icmp_token(at.now, at.control) {
        return Verdict::Drop(answer.reason);
    }
    match write6(frame, &at.iface.mac, packet) {
        Some(()) => Verdict::Answered(answer.reason),
        None => Verdict::Drop(answer.reason),
    }
}

#[inline(always)]
fn write6<F: Frame>(frame: &mut F, mac: &[u8; 6], packet: &Packet6) -> Option<()> {
    const NEW: usize = ETHERNET + ipv6::HEADER + TCP;
    let bytes = (ETHERNET + packet.total as usize).checked_sub(packet.l4())?;
    let mut tcp = answer_to(frame, packet.l4(), bytes)?;
    let old = *frame.at::<12>(0)?;
    if !frame.cut_to(NEW) {
        return None;
    }
    let ends = sum(sum(0, &packet.key.source), &packet.key.destination);
    let pseudo = checksum::add(checksum::add(ends, [0, 0, 0, TCP as u8]), [0, 0, 0, protocol::TCP]);
    [tcp[16], tcp[17]] = checksum::finish(sum(pseudo, &tcp));
    let header = frame.at::<NEW>(0)?;
    header.get_mut(0..6)?.copy_from_slice(old.get(6..12)?);
    header.get_mut(6..12)?.copy_from_slice(mac);
    [header[12], header[13]] = ETHERTYPE_IPV6;
    header.get_mut(14..22)?.copy_from_slice(&[0x60, 0, 0, 0, 0, TCP as u8, protocol::TCP, 64]);
    header.get_mut(22..38)?.copy_from_slice(&packet.key.destination);
    header.get_mut(38..54)?.copy_from_slice(&packet.key.source);
    header.get_mut(54..74)?.copy_from_slice(&tcp);
    Some(())
}
