//! The flow entry: what is known of one direction of a flow. What the bits of `status` mean over time is `conntrack`'s.

use super::{FlowKey4, Packets, SharedU16, SharedU32, SharedU64, Ticks};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// One direction of a flow: the rewrite, the way out and the counters. With an IPv4 key it is one cache line, and that line
/// is all that a packet of a known flow needs.
///
/// The fast path reads all of it and writes `packets`, `bytes` and `last_seen`. What `addresses` and `ports` say is what the
/// packet leaves with; without translation they equal the key's (IPv4) or are zero (IPv6).
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct FlowEntry {
    /// Packets forwarded in this direction.
    pub packets: Packets,
    /// Bytes forwarded in this direction: IP total length, without Ethernet and padding.
    pub bytes: SharedU64,
    /// The way out: a packed `NextHop`, one word so that it changes at once.
    pub next_hop: SharedU64,
    /// Source and destination address to leave with, as they stand in a packet (IPv4).
    pub addresses: SharedU64,
    /// Source and destination port to leave with, as they stand in a packet.
    pub ports: SharedU32,
    /// Bits of `status`.
    pub status: SharedU32,
    /// Ticks at the last packet of this direction.
    pub last_seen: SharedU32,
    /// The low half of `Control::epoch` under which route and policy were last asked. It comes round after 65,536 changes; an
    /// entry that nobody used for exactly that many would ask again at the next one.
    pub epoch: SharedU16,
    /// Largest IP packet that the way out takes, bytes.
    pub mtu: SharedU16,
}

impl FlowEntry {
    /// Has packets leave with the tuple of `key`.
    #[inline(always)]
    pub fn leave_as(&self, key: &FlowKey4) {
        let [addresses, rest]: [u64; 2] = zerocopy::transmute!(*key);
        self.addresses.store(addresses);
        self.ports.store(rest as u32);
    }

    /// Source address to leave with (IPv4).
    #[inline(always)]
    pub fn source(&self) -> [u8; 4] {
        (self.addresses.load() as u32).to_ne_bytes()
    }

    /// Destination address to leave with (IPv4).
    #[inline(always)]
    pub fn destination(&self) -> [u8; 4] {
        ((self.addresses.load() >> 32) as u32).to_ne_bytes()
    }

    /// Source port to leave with (IPv4), network order.
    #[inline(always)]
    pub fn source_port(&self) -> [u8; 2] {
        (self.ports.load() as u16).to_ne_bytes()
    }

    /// Destination port to leave with (IPv4), network order.
    #[inline(always)]
    pub fn destination_port(&self) -> [u8; 2] {
        ((self.ports.load() >> 16) as u16).to_ne_bytes()
    }

    /// `Side` of the interface that the answers enter by.
    #[inline(always)]
    pub fn partner_side(&self) -> u8 {
        (self.status.load() >> status::PARTNER_SHIFT & 3) as u8
    }

    /// Takes over everything but the status.
    #[inline(always)]
    pub fn copy_from(&self, other: &Self) {
        self.packets.copy_from(&other.packets);
        self.bytes.store(other.bytes.load());
        self.next_hop.store(other.next_hop.load());
        self.addresses.store(other.addresses.load());
        self.ports.store(other.ports.load());
        self.last_seen.store(other.last_seen.load());
        self.epoch.store(other.epoch.load());
        self.mtu.store(other.mtu.load());
    }
}

/// What the fast path has no use for: how an entry came to be.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Birth {
    /// Ticks when the connection (or its latest reincarnation) began.
    pub since: SharedU32,
    /// Firewall rule that admitted the flow, 0 for the default of its side.
    pub rule: SharedU16,
    /// Where its packets come from: see the functions below.
    pub arrival: SharedU16,
}

/// Bits of `Birth::arrival`: a slot, one more than it.
const SLOT: u16 = 0x3f;
/// Bits of `Birth::arrival`: the rest says where the direction stands in TCP's sequence space, if this is set.
const PLACED: u16 = 1 << 6;
/// Where that stands; nine bits.
const PLACE_SHIFT: u32 = 7;

impl Birth {
    /// One that begins: by the interface with this slot.
    #[inline(always)]
    pub fn new(since: Ticks, rule: u16, slot: u8) -> Self {
        let arrival = SharedU16::new((u16::from(slot) + 1) & SLOT);
        Self { since: SharedU32::new(since), rule: SharedU16::new(rule), arrival }
    }

    /// Slot of the interface that its packets come by, as of the last time that they asked for their way. `None` for a
    /// direction that has had no packet.
    #[inline(always)]
    pub fn ingress(&self) -> Option<u8> {
        (self.arrival.load() & SLOT).checked_sub(1).map(|slot| slot as u8)
    }

    /// Its packets come by the interface with this slot.
    #[inline(always)]
    pub fn set_ingress(&self, slot: u8) {
        self.arrival.store(self.arrival.load() & !SLOT | (u16::from(slot) + 1) & SLOT);
    }

    /// Whether it is known where the direction stands in TCP's sequence space.
    #[inline(always)]
    pub fn is_placed(&self) -> bool {
        self.arrival.load() & PLACED != 0
    }

    /// Where that is, as `sequence` means it.
    #[inline(always)]
    pub fn place(&self) -> u16 {
        self.arrival.load() >> PLACE_SHIFT
    }

    /// Says where it stands; of `place` nine bits count.
    #[inline(always)]
    pub fn set_place(&self, place: u16) {
        self.arrival.store(self.arrival.load() & SLOT | PLACED | place << PLACE_SHIFT);
    }

    /// Where it stands is not known any more.
    #[inline(always)]
    pub fn forget_place(&self) {
        self.arrival.store(self.arrival.load() & SLOT);
    }
}

const _: () = assert!(size_of::<FlowEntry>() == 48);
const _: () = assert!(size_of::<Birth>() == 8);
const _: () = assert!(super::MAX_IFACES < SLOT as u32);

/// Where packets of a flow leave: egress interface and the next hop's link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Egress interface index; 16 bits are enough, `run` refuses higher ones.
    pub ifindex: u16,
    /// Link-layer address to send to.
    pub mac: [u8; 6],
}

impl NextHop {
    /// As it stands in `FlowEntry::next_hop`: the address in the low six bytes as they go on the wire, then the index.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        let [x, y] = self.ifindex.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, x, y])
    }

    /// Inverse of `pack`.
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, x, y] = word.to_ne_bytes();
        Self { ifindex: u16::from_ne_bytes([x, y]), mac: [a, b, c, d, e, f] }
    }
}

/// Bits of `FlowEntry::status`. Once an entry is published they change only by atomic OR and AND, so two CPUs on one
/// connection lose none.
pub mod status {
    /// Low byte: a packet whose signal (TCP flags, or `SIGNAL` for all other protocols) meets this mask takes the slow path.
    pub const WATCH: u32 = 0xff;
    /// Signal of every packet that is not TCP. It is TCP's CWR bit, which TCP signals leave out.
    pub const SIGNAL: u8 = 0x80;
    /// Where the TCP flags FIN, SYN, RST and ACK stand that have been seen in this direction since the entry was made.
    pub const FLAGS_SHIFT: u32 = 8;
    /// Those bits. Between them there is room for the next one.
    pub const FLAGS: u32 = 0x17 << FLAGS_SHIFT;
    /// This end has sent an RST, and nothing since that takes it back.
    pub const RESET_HERE: u32 = 1 << 11;
    /// Where FIN, SYN and RST stand if they were seen again since the controller last took note; in TCP's order.
    pub const AGAIN_SHIFT: u32 = 13;
    /// Those bits.
    pub const AGAIN: u32 = 7 << AGAIN_SHIFT;
    /// An answer has been seen. This and the next five stand equal in both entries of a connection.
    pub const REPLIED: u32 = 1 << 16;
    /// UDP with more than one request and response.
    pub const STREAM: u32 = 1 << 17;
    /// TCP handshake complete.
    pub const ESTABLISHED: u32 = 1 << 18;
    /// FIN from the originator.
    pub const FIN_ORIGINATOR: u32 = 1 << 19;
    /// FIN from the responder.
    pub const FIN_RESPONDER: u32 = 1 << 20;
    /// RST from either.
    pub const RESET: u32 = 1 << 21;
    /// Picked up in mid-stream: the handshake was not seen.
    pub const LOOSE: u32 = 1 << 22;
    /// This entry is the originator's.
    pub const ORIGINATOR: u32 = 1 << 24;
    /// This entry rewrites the source.
    pub const SOURCE_NAT: u32 = 1 << 25;
    /// This entry rewrites the destination.
    pub const DESTINATION_NAT: u32 = 1 << 26;
    /// Where the `Side` stands that the answers enter by; two bits.
    pub const PARTNER_SHIFT: u32 = 27;
    /// The upper two bits say whether the entry's slot is in use, see `flow_table`.
    pub const TENANCY: u32 = 3 << 30;
    /// All bits that both entries share.
    pub const SHARED: u32 = REPLIED | STREAM | ESTABLISHED | FIN_ORIGINATOR | FIN_RESPONDER | RESET | LOOSE;
}
