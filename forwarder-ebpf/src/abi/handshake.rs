//! Round trips of TCP handshakes as they pass: one cell per connection, in an array that knows the latest of them. What is
//! written when is `handshake`'s.

use super::{FlowEntry, FlowKey, SharedU64, status};
use crate::wire::protocol;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// Cells; a new connection takes its own from whoever has it. 2 MiB.
pub const HANDSHAKES: u32 = 1 << INDEX_BITS;

const INDEX_BITS: u32 = 17;
/// Where the mark of a connection stands in a word; 30 bits. Below it are two bits of `phase`, and 32 of microseconds.
const MARK_SHIFT: u32 = 34;
const PHASE_SHIFT: u32 = 32;

/// What the microseconds of a word mean.
pub mod phase {
    /// Nothing yet.
    pub const IDLE: u64 = 0;
    /// The clock when a question passed that waits for its answer.
    pub const RUNNING: u64 = 1;
    /// A round trip, at least 1.
    pub const MEASURED: u64 = 2;
    /// Nothing, and nothing will be: which question was answered cannot be told.
    pub const UNKNOWN: u64 = 3;
}

/// A connection's two round trips. Each word says whose it is, so that of a cell which changes hands no half is taken for the
/// other's.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Handshake {
    /// Between here and the responder: from SYN to SYN-ACK.
    pub responder: SharedU64,
    /// Between here and the originator: from SYN-ACK to the ACK that completes the handshake.
    pub originator: SharedU64,
}

/// Round trips between here and both ends of a connection, microseconds; 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// To the originator and back.
    pub originator_us: u32,
    /// To the responder and back.
    pub responder_us: u32,
}

/// Where a connection's cell is, and how it is told from others that have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the cell.
    pub index: u32,
    /// The connection's mark, as it stands in the words.
    pub mark: u64,
}

impl Place {
    /// By the hash of the originator's key under its table's secret.
    #[inline(always)]
    pub const fn of(hash: u64) -> Self {
        // Not what the flow table multiplies by; the upper bits of a product depend on all of the hash.
        let mixed = (hash ^ hash >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self { index: (mixed >> (64 - INDEX_BITS)) as u32, mark: mixed << INDEX_BITS >> MARK_SHIFT << MARK_SHIFT }
    }

    /// Of the connection that an entry belongs to. `None`: there is no handshake to measure, or it was not seen.
    pub fn of_flow<K: FlowKey>(key: &K, entry: &FlowEntry, hash: impl FnOnce(&K) -> u64) -> Option<Self> {
        let bits = entry.status.load();
        // In the cell of what was picked up in mid-stream there may be an earlier connection's.
        if key.protocol() != protocol::TCP || bits & status::LOOSE != 0 {
            return None;
        }
        let originator = if bits & status::ORIGINATOR != 0 { *key } else { key.partner(entry) };
        Some(Self::of(hash(&originator)))
    }

    /// A word of this connection.
    #[inline(always)]
    pub const fn word(self, phase: u64, micros: u32) -> u64 {
        self.mark | phase << PHASE_SHIFT | micros as u64
    }

    /// Whether a word is this connection's, in this phase.
    #[inline(always)]
    pub const fn is_in(self, phase: u64, word: u64) -> bool {
        word >> PHASE_SHIFT == self.word(phase, 0) >> PHASE_SHIFT
    }
}

impl Handshake {
    /// What has been measured of a connection. `None`: the cell is another one's.
    pub fn round_trips(&self, place: Place) -> Option<RoundTrips> {
        let words = [self.originator.load(), self.responder.load()];
        let [originator_us, responder_us] =
            words.map(|word| if place.is_in(phase::MEASURED, word) { word as u32 } else { 0 });
        let is_its = words.iter().any(|word| word >> MARK_SHIFT == place.mark >> MARK_SHIFT);
        is_its.then_some(RoundTrips { originator_us, responder_us })
    }
}

const _: () = assert!(size_of::<Handshake>() == 16);
