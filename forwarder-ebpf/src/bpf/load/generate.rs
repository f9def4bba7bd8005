//! The generator: run with live frames, writes all headers of each and sends it. Live frames are recycled and come with what
//! they were last, so every byte that a device may have changed is written.

use crate::maps::{FRAME4, FRAME6, HOPS, LOAD, OUT, STREAMS, SYN, TCP, UDP, bytes, slot, word};
use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_xdp_adjust_tail};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{LOAD_CLIENTS6, LOAD_MAGIC, LOAD_SERVERS6, LoadConfig, LoadStream, load_port};
use forwarder_ebpf::wire::checksum;

/// How far a generator that is late may catch up, ns.
const PATIENCE_NS: u64 = 100_000;

/// One packet to be: which flow, in which direction, and what its marks say.
struct Draft {
    flow: u32,
    backward: u32,
    number: u32,
    stamp: u32,
}

#[inline(always)]
fn clock_ns() -> u64 {
    // SAFETY: takes nothing and only returns a number.
    unsafe { bpf_ktime_get_ns() }
}

/// This CPU's memory of a direction.
#[inline(always)]
fn stream(index: u32) -> Option<&'static mut LoadStream> {
    let pointer = STREAMS.get_ptr_mut(index)?;
    // SAFETY: this CPU's copy of the value, which no other program writes before this one ends; each is taken once.
    Some(unsafe { &mut *pointer })
}

/// Makes a frame and sends it, or drops the run when the frame is not due.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(config) = LOAD.get(0) else { return XDP_DROP };
    let Some(draft) = draft(config) else { return XDP_DROP };
    if config.imix != 0 && !cut(&ctx, config, draft.number) {
        return XDP_DROP;
    }
    let length = (ctx.data_end() - ctx.data()) as u16;
    let written = if config.family == 6 {
        bytes::<FRAME6>(&ctx).map(|frame| write6(frame, config, &draft, length))
    } else {
        bytes::<FRAME4>(&ctx).map(|frame| write4(frame, config, &draft, length))
    };
    let out = if draft.backward == 0 { slot::CLIENT } else { slot::SERVER };
    match written {
        Some(()) => OUT.redirect(out, 0).unwrap_or_else(|action| action),
        None => XDP_DROP,
    }
}

/// The next packet. `None`: it is not due.
#[inline(always)]
fn draft(config: &LoadConfig) -> Option<Draft> {
    let backward = match config.directions {
        1 => 0,
        2 => 1,
        _ => {
            let first = stream(0)?;
            first.turn = first.turn.wrapping_add(1);
            first.turn & 1
        }
    };
    let stream = stream(backward)?;
    if config.interval_ns != 0 {
        let now = clock_ns();
        if now < stream.due_ns {
            return None;
        }
        let due = if now > stream.due_ns + PATIENCE_NS { now } else { stream.due_ns };
        stream.due_ns = due + u64::from(config.interval_ns);
    }
    stream.sent += 1;
    let flow = stream.flow;
    let next = flow + config.step;
    stream.flow = if next >= config.flows { next - config.flows } else { next };
    let number = stream.sent as u32;
    let stamp = if config.stamp_mask != u32::MAX && number & config.stamp_mask == 0 { clock_ns() as u32 } else { 0 };
    Some(Draft { flow: config.first_flow + flow, backward, number, stamp })
}

/// Cuts the frame to one of the sizes of the Internet mix, 7:4:1.
#[inline(always)]
fn cut(ctx: &XdpContext, config: &LoadConfig, number: u32) -> bool {
    let length = match number % 12 {
        0 => return true,
        1 | 4 | 7 | 10 => 566,
        _ => 60,
    };
    let least = if config.family == 6 { FRAME6 as i32 } else { 60 };
    let length = if length < least { least } else { length };
    // SAFETY: the program's own context; no pointer into the frame is kept.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, length - config.imix as i32) == 0 }
}

#[inline(always)]
fn ethernet<const N: usize>(frame: &mut [u8; N], config: &LoadConfig, backward: u32, kind: [u8; 2]) {
    let station = &config.stations[(backward & 1) as usize];
    frame[0..6].copy_from_slice(&station.to);
    frame[6..12].copy_from_slice(&station.from);
    frame[12..14].copy_from_slice(&kind);
}

/// Ports, length and marks; the checksum stays 0.
#[inline(always)]
fn transport<const N: usize>(frame: &mut [u8; N], config: &LoadConfig, at: usize, draft: &Draft, length: u16) {
    let (client, server) = (load_port(draft.flow).to_be_bytes(), config.server_port(draft.flow).to_be_bytes());
    let (source, destination) = if draft.backward == 0 { (client, server) } else { (server, client) };
    frame[at..at + 2].copy_from_slice(&source);
    frame[at + 2..at + 4].copy_from_slice(&destination);
    frame[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
    frame[at + 6..at + 8].copy_from_slice(&[0, 0]);
    frame[at + 8..at + 12].copy_from_slice(&LOAD_MAGIC.to_ne_bytes());
    frame[at + 12..at + 16].copy_from_slice(&(draft.flow | draft.backward << 31).to_ne_bytes());
    frame[at + 16..at + 20].copy_from_slice(&draft.number.to_ne_bytes());
    frame[at + 20..at + 24].copy_from_slice(&draft.stamp.to_ne_bytes());
}

#[inline(always)]
fn write4(frame: &mut [u8; FRAME4], config: &LoadConfig, draft: &Draft, length: u16) {
    ethernet(frame, config, draft.backward, [0x08, 0x00]);
    let (client, server) = (config.client(draft.flow), config.server(draft.flow));
    let (source, destination) = match (draft.backward, config.translated) {
        (0, _) => (client, server),
        (_, 0) => (server, client),
        _ => (server, config.public),
    };
    let [high, low] = (length - 14).to_be_bytes();
    let protocol = if config.syn == 0 { UDP } else { TCP };
    let mut sum = 0;
    for word in [[0x45, 0, high, low], [0, 0, 0x40, 0], [HOPS, protocol, 0, 0], source, destination] {
        sum = checksum::add(sum, word);
    }
    let [x, y] = checksum::finish(sum);
    frame[14..18].copy_from_slice(&[0x45, 0, high, low]);
    frame[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
    frame[22..26].copy_from_slice(&[HOPS, protocol, x, y]);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    if config.syn != 0 {
        return syn(frame, config, draft, length - 34);
    }
    // A UDP checksum of 0 stands for one that the NIC has verified.
    transport(frame, config, 34, draft, length - 34);
}

/// The header of a SYN, and the magic as the data that it should not have. What follows is zeros, which change no sum.
#[inline(always)]
fn syn(frame: &mut [u8; FRAME4], config: &LoadConfig, draft: &Draft, length: u16) {
    let (client, server) = (load_port(draft.flow).to_be_bytes(), config.server_port(draft.flow).to_be_bytes());
    let [high, low] = length.to_be_bytes();
    let ports = [client[0], client[1], server[0], server[1]];
    let (number, window, magic) = (draft.number.to_ne_bytes(), [SYN[0], SYN[1], 0xff, 0xff], LOAD_MAGIC.to_ne_bytes());
    let mut sum = checksum::add(checksum::add(0, word(frame, 26)), word(frame, 30));
    for word in [[0, TCP, high, low], ports, number, window, magic] {
        sum = checksum::add(sum, word);
    }
    let [x, y] = checksum::finish(sum);
    frame[34..38].copy_from_slice(&ports);
    frame[38..42].copy_from_slice(&number);
    frame[42..46].copy_from_slice(&[0; 4]);
    frame[46..50].copy_from_slice(&window);
    frame[50..54].copy_from_slice(&[x, y, 0, 0]);
    frame[54..58].copy_from_slice(&magic);
}

#[inline(always)]
fn write6(frame: &mut [u8; FRAME6], config: &LoadConfig, draft: &Draft, length: u16) {
    ethernet(frame, config, draft.backward, [0x86, 0xdd]);
    let [high, low] = (length - 54).to_be_bytes();
    frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
    frame[18..22].copy_from_slice(&[high, low, UDP, HOPS]);
    let client = (LOAD_CLIENTS6, config.client(draft.flow));
    let server = (LOAD_SERVERS6, config.server(draft.flow));
    let (source, destination) = if draft.backward == 0 { (client, server) } else { (server, client) };
    frame[22..34].copy_from_slice(&source.0);
    frame[34..38].copy_from_slice(&source.1);
    frame[38..50].copy_from_slice(&destination.0);
    frame[50..54].copy_from_slice(&destination.1);
    transport(frame, config, 54, draft, length - 54);
    // IPv6 knows no UDP without checksum. What follows the marks is zeros, which change no sum.
    let pseudo = u64::from(u16::from_ne_bytes([high, low])) + u64::from(u16::from_ne_bytes([0, UDP]));
    let sum = add16(add16(add16(pseudo, frame, 22), frame, 38), frame, 54);
    let sum = checksum::add(checksum::add(sum, word(frame, 70)), word(frame, 74));
    let [x, y] = checksum::finish(sum);
    let sent = if x == 0 && y == 0 { [0xff, 0xff] } else { [x, y] };
    frame[60..62].copy_from_slice(&sent);
}

/// Adds sixteen bytes to a running sum. Not a loop: its bounds checks would stay.
#[inline(always)]
fn add16(sum: u64, frame: &[u8; FRAME6], at: usize) -> u64 {
    let sum = checksum::add(checksum::add(sum, word(frame, at)), word(frame, at + 4));
    checksum::add(checksum::add(sum, word(frame, at + 8)), word(frame, at + 12))
}
