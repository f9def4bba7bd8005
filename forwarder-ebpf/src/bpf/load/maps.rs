//! The maps, and where things are in the frames.
//!
//! ```text
//! IPv4   Ethernet 14, IPv4 20, UDP 8, marks 16, zeros       60 bytes at least
//! IPv6   Ethernet 14, IPv6 40, UDP 8, marks 16, zeros       78 bytes at least
//! SYN    Ethernet 14, IPv4 20, TCP 20, magic 4, zeros       60 bytes at least; its number is the sequence number
//! marks  magic 4, direction << 31 | flow 4, number 4, low half of the clock in ns or 0 4
//! ```

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use forwarder_ebpf::abi::{DWELL_BUCKETS, LoadArrived, LoadConfig, LoadStream, LoadWalk, SharedU64};

/// What to do.
#[map]
pub static LOAD: Array<LoadConfig> = Array::with_max_entries(1, 0);
/// The generator's memory, by direction.
#[map]
pub static STREAMS: PerCpuArray<LoadStream> = PerCpuArray::with_max_entries(2, 0);
/// What arrived, by direction.
#[map]
pub static ARRIVED: Array<LoadArrived> = Array::with_max_entries(2, 0);
/// How long frames with a time stamp took, both directions together.
#[map]
pub static TRANSIT: PerCpuArray<u64> = PerCpuArray::with_max_entries(DWELL_BUCKETS, 0);
/// Interfaces, by slot; see `slot`.
#[map]
pub static OUT: DevMap = DevMap::with_max_entries(4, 0);

/// Stands for the flow table: as large, and allotted the same way. `forwarder-bench` sizes it.
#[map]
pub static CELLS: Array<[SharedU64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Where `access` is in it.
#[map]
pub static WALK: Array<LoadWalk> = Array::with_max_entries(1, 0);

/// Slots of `OUT`.
pub mod slot {
    /// Where the clients' end sends: generated frames of direction 0.
    pub const CLIENT: u32 = 0;
    /// Where the servers' end sends: generated frames of direction 1, and echoes.
    pub const SERVER: u32 = 1;
    /// Where the bare redirect sends to the servers.
    pub const OUTSIDE: u32 = 2;
    /// Where the bare redirect sends to the clients.
    pub const INSIDE: u32 = 3;
}

/// Bytes of an IPv4 frame that is looked at.
pub const FRAME4: usize = 14 + 20 + 8 + 16;
/// Bytes of an IPv6 frame that is looked at.
pub const FRAME6: usize = 14 + 40 + 8 + 16;
/// UDP over IP.
pub const UDP: u8 = 17;
/// TCP over IP.
pub const TCP: u8 = 6;
/// Offset of data, in the upper half, and flags of a SYN without options, as they stand in a TCP header.
pub const SYN: [u8; 2] = [0x50, 2];
/// TTL and hop limit of what is generated.
pub const HOPS: u8 = 64;

/// The first bytes of the frame, if it has as many. The caller holds no other reference into it.
#[inline(always)]
pub fn bytes<const N: usize>(ctx: &XdpContext) -> Option<&'static mut [u8; N]> {
    let start = ctx.data();
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie between data and data_end; callers hold one reference at a time.
    Some(unsafe { &mut *(start as *mut [u8; N]) })
}

/// Four bytes of a frame.
#[inline(always)]
pub fn word<const N: usize>(frame: &[u8; N], at: usize) -> [u8; 4] {
    [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]
}

/// The number of a flow in the marks, and the direction.
#[inline(always)]
pub fn unmark(word: [u8; 4]) -> (u32, u32) {
    let word = u32::from_ne_bytes(word);
    (word & 0x7fff_ffff, word >> 31)
}
