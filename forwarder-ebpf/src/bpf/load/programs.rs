//! Generator, sink, bare redirect. Per-CPU values belong to the running program, as in the datapath.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{LOAD_FIRST_PORT, LOAD_FLOWS_PER_DESTINATION, LOAD_MAGIC, LoadConfig, LoadCounter};

#[map]
static LOAD: Array<LoadConfig> = Array::with_max_entries(1, 0);
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static ARRIVED: PerCpuArray<LoadCounter> = PerCpuArray::with_max_entries(1, 0);
/// 0: where the generator sends; 1: where the bare redirect sends.
#[map]
static OUT: DevMap = DevMap::with_max_entries(2, 0);

/// Ethernet, IPv4, UDP, magic, sequence number: the shortest frame that is generated.
const FRAME: usize = 14 + 20 + 8 + 8 + 8;
/// Where the magic stands.
const MAGIC: usize = 14 + 20 + 8;
/// A prime larger than any number of flows: its multiples visit every flow once before any comes again.
const STEP: u64 = 2_654_435_761;

#[inline(always)]
fn bytes<const N: usize>(ctx: &XdpContext) -> Option<&'static mut [u8; N]> {
    let start = ctx.data();
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie between data and data_end; the program holds no other reference into the frame.
    Some(unsafe { &mut *(start as *mut [u8; N]) })
}

/// Writes every byte of the headers: live frames are recycled, and come with what they were last.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let (Some(config), Some(sent), Some(frame)) = (LOAD.get(0), SENT.get_ptr_mut(0), bytes::<FRAME>(&ctx)) else {
        return XDP_DROP;
    };
    // SAFETY: this CPU's copy of the value, which no other program writes before this one ends.
    let number = unsafe {
        *sent += 1;
        *sent
    };
    let length = (ctx.data_end() - ctx.data()) as u16;
    let flow = (number.wrapping_mul(STEP) % u64::from(if config.flows == 0 { 1 } else { config.flows })) as u32;
    let (block, offset) = (flow / LOAD_FLOWS_PER_DESTINATION, flow % LOAD_FLOWS_PER_DESTINATION);
    let [a, b, c, d] = config.destination;
    let destination = [a, b, c, d.wrapping_add(block as u8)];
    frame[0..6].copy_from_slice(&config.to);
    frame[6..12].copy_from_slice(&config.from);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..34].copy_from_slice(&header(length - 14, config.source, destination));
    frame[34..36].copy_from_slice(&(LOAD_FIRST_PORT + offset as u16).to_be_bytes());
    // Destination port 9, discard; checksum 0 stands for one that the NIC has verified.
    frame[36..38].copy_from_slice(&[0, 9]);
    frame[38..40].copy_from_slice(&(length - 34).to_be_bytes());
    frame[40..42].copy_from_slice(&[0, 0]);
    frame[MAGIC..MAGIC + 8].copy_from_slice(&LOAD_MAGIC.to_ne_bytes());
    frame[MAGIC + 8..MAGIC + 16].copy_from_slice(&number.to_ne_bytes());
    OUT.redirect(0, 0).unwrap_or_else(|action| action)
}

#[inline(always)]
fn header(total: u16, source: [u8; 4], destination: [u8; 4]) -> [u8; 20] {
    let [high, low] = total.to_be_bytes();
    let words = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 17, 0, 0], source, destination];
    let mut sum = 0u64;
    for word in words {
        sum = forwarder_ebpf::wire::checksum::add(sum, word);
    }
    let [x, y] = forwarder_ebpf::wire::checksum::finish(sum);
    let [s0, s1, s2, s3] = source;
    let [d0, d1, d2, d3] = destination;
    [0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, x, y, s0, s1, s2, s3, d0, d1, d2, d3]
}

#[inline(always)]
fn is_ours(frame: &[u8; FRAME]) -> bool {
    let mut magic = [0; 8];
    magic.copy_from_slice(&frame[MAGIC..MAGIC + 8]);
    u64::from_ne_bytes(magic) == LOAD_MAGIC
}

/// Counts what the generator made and drops it; everything else is for the host.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let (Some(config), Some(counter)) = (LOAD.get(0), ARRIVED.get_ptr_mut(0)) else { return XDP_PASS };
    let Some(frame) = bytes::<FRAME>(&ctx).filter(|frame| is_ours(frame)) else { return XDP_PASS };
    let as_expected = frame[26..30] == config.expected;
    // SAFETY: this CPU's copy of the value, which no other program writes before this one ends.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += (ctx.data_end() - ctx.data()) as u64;
        (*counter).wrong += u64::from(!as_expected);
    }
    XDP_DROP
}

/// What the fastest appliance would cost: other link-layer addresses, and out by the other side.
#[xdp]
pub fn bare(ctx: XdpContext) -> u32 {
    let Some(config) = LOAD.get(0) else { return XDP_PASS };
    let Some(frame) = bytes::<FRAME>(&ctx).filter(|frame| is_ours(frame)) else { return XDP_PASS };
    frame[0..6].copy_from_slice(&config.bare_to);
    frame[6..12].copy_from_slice(&config.bare_from);
    OUT.redirect(1, 0).unwrap_or_else(|action| action)
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
