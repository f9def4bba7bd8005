//! Packets that were refused, by their ends, for flow logs.

use super::{FlowKey4, FlowKey6, SharedU32, SharedU64, Ticks};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// 5-tuples of refused packets that can be told apart, per family and in both banks together.
pub const MAX_REFUSED: u32 = 1 << 15;

/// Whether refused packets are counted, and in which bank; the single value of `REFUSING`. The controller reads a bank after no
/// program uses it any more, so nothing that is counted is missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Refusing {
    /// 1: count.
    pub wanted: u32,
    /// 0 or 1.
    pub bank: u32,
}

/// How many packets of one 5-tuple were refused for one reason.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Refused {
    /// Packets.
    pub packets: SharedU64,
    /// Bytes: IP total length, or what is behind the Ethernet header where that cannot be believed.
    pub bytes: SharedU64,
    /// FIN, SYN, RST and SYN-ACK as AWS counts them.
    pub tcp_flags: SharedU32,
    /// Ticks at the first packet.
    pub first: SharedU32,
    /// Ticks at the last packet.
    pub last: SharedU32,
    /// Firewall rule that refused the last, 0 for none.
    pub rule: SharedU32,
}

/// What stands in the two bytes of a flow key that are otherwise zero, when it is the key of refused packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedBy {
    /// Slot of the interface that they came by.
    pub slot: u8,
    /// Bank that they are counted in.
    pub bank: u8,
    /// Number of the `Drop`.
    pub reason: u8,
}

impl RefusedBy {
    /// As it stands in the key.
    #[inline(always)]
    pub fn pack(self) -> [u8; 2] {
        [self.slot | self.bank << 7, self.reason]
    }

    /// Inverse of `pack`.
    #[inline(always)]
    pub fn unpack([slot, reason]: [u8; 2]) -> Self {
        Self { slot: slot & 0x7f, bank: slot >> 7, reason }
    }
}

/// A key of refused packets.
pub trait RefusedKey {
    /// Who refused them, and where.
    fn by(&self) -> RefusedBy;
}

impl RefusedKey for FlowKey4 {
    fn by(&self) -> RefusedBy {
        RefusedBy::unpack(self.zero)
    }
}

impl RefusedKey for FlowKey6 {
    fn by(&self) -> RefusedBy {
        RefusedBy::unpack(self.zero)
    }
}

impl Refused {
    /// Of one packet, which this rule refused.
    #[inline(always)]
    pub fn one(bytes: u64, tcp_flags: u32, now: Ticks, rule: u16) -> Self {
        Self {
            packets: SharedU64::new(1),
            bytes: SharedU64::new(bytes),
            tcp_flags: SharedU32::new(tcp_flags),
            first: SharedU32::new(now),
            last: SharedU32::new(now),
            rule: SharedU32::new(rule as u32),
        }
    }

    /// One more.
    #[inline(always)]
    pub fn add(&self, bytes: u64, tcp_flags: u32, now: Ticks) {
        self.packets.add(1);
        self.bytes.add(bytes);
        self.tcp_flags.or(tcp_flags);
        self.last.store(now);
    }
}

/// TCP flags as AWS counts them: FIN 1, SYN 2, RST 4, and 16 only with SYN (VPC user guide, "Flow log records").
#[inline(always)]
pub fn logged_flags(signal: u8) -> u32 {
    const SYN_ACK: u32 = 0x12;
    let signal = u32::from(signal);
    let ack = if signal & SYN_ACK == SYN_ACK { 0x10 } else { 0 };
    signal & 7 | ack
}

const _: () = assert!(size_of::<Refused>() == 32);
