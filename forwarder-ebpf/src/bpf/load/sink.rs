//! The far end: counts and checks what the generator made, sends echo requests back, leaves the rest to the host. And the
//! bare redirect between.

use crate::maps::{ARRIVED, FRAME4, FRAME6, HOPS, LOAD, OUT, SYN, TCP, TRANSIT, UDP, bytes, slot, unmark, word};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{
    LOAD_CLIENTS6, LOAD_ECHO_PORT, LOAD_MAGIC, LOAD_SERVERS6, LoadArrived, LoadConfig, dwell_bucket, load_port,
};
use forwarder_ebpf::wire::checksum::{self, Delta};

/// Whether a packet is as it has to be.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    Right,
    /// But for the client's port, which a device may choose.
    Moved,
    WrongSource,
    WrongElsewhere,
}

/// Counts what the generator made and drops it.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let Some(frame) = bytes::<FRAME4>(&ctx) else { return XDP_PASS };
    let kind = [frame[12], frame[13]];
    if kind == [0x08, 0x00] {
        return sink4(&ctx, frame);
    }
    let Some(frame) = bytes::<FRAME6>(&ctx).filter(|_| kind == [0x86, 0xdd]) else { return XDP_PASS };
    sink6(&ctx, frame)
}

#[inline(always)]
fn sink4(ctx: &XdpContext, frame: &mut [u8; FRAME4]) -> u32 {
    if frame[14] == 0x45
        && frame[23] == TCP
        && [frame[46], frame[47]] == SYN
        && word(frame, 54) == LOAD_MAGIC.to_ne_bytes()
    {
        return count(ctx, Check::Right, 0, [word(frame, 38), [0; 4]]);
    }
    if frame[14] != 0x45 || frame[23] != UDP {
        return XDP_PASS;
    }
    if frame[36..38] == LOAD_ECHO_PORT.to_be_bytes() {
        let (source, destination) = (word(frame, 26), word(frame, 30));
        frame[26..30].copy_from_slice(&destination);
        frame[30..34].copy_from_slice(&source);
        swap_ports(frame, 34);
        return send_back(frame);
    }
    if word(frame, 42) != LOAD_MAGIC.to_ne_bytes() {
        return XDP_PASS;
    }
    let Some(config) = LOAD.get(0) else { return XDP_PASS };
    let (flow, backward) = unmark(word(frame, 46));
    let check = check4(frame, config, flow, backward);
    let action = count(ctx, check, backward, [word(frame, 50), word(frame, 54)]);
    if config.reflect != 0 && backward == 0 { reflect4(frame) } else { action }
}

#[inline(always)]
fn sink6(ctx: &XdpContext, frame: &mut [u8; FRAME6]) -> u32 {
    if frame[20] != UDP {
        return XDP_PASS;
    }
    if frame[56..58] == LOAD_ECHO_PORT.to_be_bytes() {
        for at in [22, 26, 30, 34] {
            let (source, destination) = (word(frame, at), word(frame, at + 16));
            frame[at..at + 4].copy_from_slice(&destination);
            frame[at + 16..at + 20].copy_from_slice(&source);
        }
        swap_ports(frame, 54);
        return send_back(frame);
    }
    if word(frame, 62) != LOAD_MAGIC.to_ne_bytes() {
        return XDP_PASS;
    }
    let Some(config) = LOAD.get(0) else { return XDP_PASS };
    let (flow, backward) = unmark(word(frame, 66));
    let check = check6(frame, config, flow, backward);
    count(ctx, check, backward, [word(frame, 70), word(frame, 74)])
}

/// Makes a backward packet of a forward one and sends it.
#[inline(always)]
fn reflect4(frame: &mut [u8; FRAME4]) -> u32 {
    let (source, destination) = (word(frame, 26), word(frame, 30));
    frame[26..30].copy_from_slice(&destination);
    frame[30..34].copy_from_slice(&source);
    swap_ports(frame, 34);
    let hops = Delta::default().word([frame[22], UDP], [HOPS, UDP]).finish();
    let [x, y] = checksum::apply([frame[24], frame[25]], hops);
    (frame[22], frame[24], frame[25]) = (HOPS, x, y);
    // The direction is the highest bit of a word in this machine's order, which on all that run this is the last byte. The
    // UDP checksum is 0, so nothing follows from that.
    frame[49] |= 0x80;
    send_back(frame)
}

/// The sums do not change with the order of what they are of.
#[inline(always)]
fn swap_ports<const N: usize>(frame: &mut [u8; N], at: usize) {
    let ports = word(frame, at);
    frame[at..at + 4].copy_from_slice(&[ports[2], ports[3], ports[0], ports[1]]);
}

/// Back to the station that it came from. Not `XDP_TX`: veth leaves such frames lying when the other end has no program.
#[inline(always)]
fn send_back<const N: usize>(frame: &mut [u8; N]) -> u32 {
    for at in [0, 2, 4] {
        let (to, from) = ([frame[at], frame[at + 1]], [frame[at + 6], frame[at + 7]]);
        frame[at..at + 2].copy_from_slice(&from);
        frame[at + 6..at + 8].copy_from_slice(&to);
    }
    OUT.redirect(slot::SERVER, 0).unwrap_or_else(|action| action)
}

#[inline(always)]
fn check4(frame: &[u8; FRAME4], config: &LoadConfig, flow: u32, backward: u32) -> Check {
    let (client, server) = (config.client(flow), config.server(flow));
    let (source, destination) = match (backward, config.translated) {
        (0, 0) => (client, server),
        (0, _) => (config.public, server),
        _ => (server, client),
    };
    if word(frame, 26) != source {
        return Check::WrongSource;
    }
    if word(frame, 30) != destination || is_off(frame[22], config) {
        return Check::WrongElsewhere;
    }
    check_ports(word(frame, 34), config, flow, backward)
}

#[inline(always)]
fn check6(frame: &[u8; FRAME6], config: &LoadConfig, flow: u32, backward: u32) -> Check {
    let client = (LOAD_CLIENTS6, config.client(flow));
    let server = (LOAD_SERVERS6, config.server(flow));
    let (source, destination) = if backward == 0 { (client, server) } else { (server, client) };
    if frame[22..34] != source.0 || word(frame, 34) != source.1 {
        return Check::WrongSource;
    }
    if frame[38..50] != destination.0 || word(frame, 50) != destination.1 || is_off(frame[21], config) {
        return Check::WrongElsewhere;
    }
    check_ports(word(frame, 54), config, flow, backward)
}

/// The TTL or hop limit is not what it has to be, if that is known.
#[inline(always)]
fn is_off(hops: u8, config: &LoadConfig) -> bool {
    config.hops != 0 && u32::from(hops) != config.hops
}

/// Ports as sent; forward, a device that translates may have chosen another for the client.
#[inline(always)]
fn check_ports(ports: [u8; 4], config: &LoadConfig, flow: u32, backward: u32) -> Check {
    let (client, server) = (load_port(flow).to_be_bytes(), config.server_port(flow).to_be_bytes());
    let [a, b, c, d] = ports;
    let (of_client, of_server) = if backward == 0 { ([a, b], [c, d]) } else { ([c, d], [a, b]) };
    match (of_client == client, of_server == server) {
        (true, true) => Check::Right,
        (false, true) if backward == 0 && config.translated != 0 => Check::Moved,
        _ => Check::WrongElsewhere,
    }
}

#[inline(always)]
fn count(ctx: &XdpContext, check: Check, backward: u32, marks: [[u8; 4]; 2]) -> u32 {
    let Some(pointer) = ARRIVED.get_ptr_mut(backward & 1) else { return XDP_PASS };
    // SAFETY: the value stays mapped, and one CPU at a time writes it (see `LoadArrived`); user space only reads.
    let arrived = unsafe { &mut *pointer };
    arrived.packets += 1;
    arrived.bytes += (ctx.data_end() - ctx.data()) as u64;
    match check {
        Check::Right => {}
        Check::Moved => arrived.moved += 1,
        Check::WrongSource => arrived.wrong += 1,
        Check::WrongElsewhere => {
            arrived.wrong += 1;
            arrived.wrong_elsewhere += 1;
        }
    }
    follow(arrived, u32::from_ne_bytes(marks[0]));
    let stamp = u32::from_ne_bytes(marks[1]);
    if stamp != 0 {
        time(stamp);
    }
    XDP_DROP
}

/// Notes the number of a frame.
#[inline(always)]
fn follow(arrived: &mut LoadArrived, number: u32) {
    let ahead = number.wrapping_sub(arrived.highest) as i32;
    if ahead > 0 {
        arrived.window = if ahead < 64 { arrived.window << (ahead & 63) | 1 } else { 1 };
        arrived.highest = number;
        return;
    }
    arrived.late += 1;
    let behind = ahead.wrapping_neg();
    if behind < 64 {
        let bit = 1u64 << (behind & 63);
        arrived.duplicates += u64::from(arrived.window & bit != 0);
        arrived.window |= bit;
    }
}

#[inline(always)]
fn time(stamp: u32) {
    // SAFETY: takes nothing and only returns a number.
    let now = unsafe { bpf_ktime_get_ns() } as u32;
    if let Some(bucket) = TRANSIT.get_ptr_mut(dwell_bucket(u64::from(now.wrapping_sub(stamp)))) {
        // SAFETY: this CPU's copy of the value, which no other program writes before this one ends.
        unsafe { *bucket += 1 };
    }
}

/// What the fastest appliance would cost: other link-layer addresses, and out by the other side.
#[xdp]
pub fn bare(ctx: XdpContext) -> u32 {
    let Some(config) = LOAD.get(0) else { return XDP_PASS };
    let Some(frame) = bytes::<FRAME4>(&ctx) else { return XDP_PASS };
    // ARP and what else hosts say to one another is not for the other side.
    if frame[22] != HOPS && frame[21] != HOPS {
        return XDP_PASS;
    }
    let (out, station) = if ctx.ingress_ifindex() as u32 == config.bare_inside {
        (slot::OUTSIDE, &config.bare[0])
    } else {
        (slot::INSIDE, &config.bare[1])
    };
    frame[0..6].copy_from_slice(&station.to);
    frame[6..12].copy_from_slice(&station.from);
    OUT.redirect(out, 0).unwrap_or_else(|action| action)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Every index is within a bound that was checked; the compiler still wants an end.
    loop {}
}

// Only the licence string tells the kernel that GPL-only helpers may be used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
