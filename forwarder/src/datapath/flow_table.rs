//! One family's flow table, as the controller has it. It reads the slots where they are, in mappings of the kernel's memory
//! that last no longer than the look at them, so that a large table does not make a large process; it changes them by
//! programs of the datapath (`forwarder-ebpf/src/bpf/tend.rs`) alone. How entries come and go stands in
//! `forwarder_ebpf::flow_table`.

use super::mapping::Mapping;
use super::sys::{self, Command};
use super::table::Table;
use super::{DatapathError, Result};
use forwarder_ebpf::abi::{
    Birth, FlowEntry, FlowKey, FlowKey4, FlowKey6, Handshake, Place, RoundTrips, Shape, SharedU64, Slot, Used, names,
    tend,
};
use forwarder_ebpf::flow_table::{BLOCK, Slots, Tenancy, WINDOW, find, find_at_home, home};
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Slots that are looked at through one mapping: a MiB of IPv4's.
const AT_ONCE: u32 = 1 << 14;

/// A key of either family, and what its table is called.
pub trait Key: FlowKey + FromBytes + IntoBytes + Immutable {
    /// The maps of slots, of births, and of the blocks in use.
    const MAPS: [&'static str; 3];
    /// The programs that retire keys, vacate slots, have directions placed, and have flags forgotten.
    const PROGRAMS: [&'static str; 4];
}

impl Key for FlowKey4 {
    const MAPS: [&'static str; 3] = [names::FLOWS4, names::BIRTHS4, names::BLOCKS4];
    const PROGRAMS: [&'static str; 4] = ["retire4", "vacate4", "place4", "forget4"];
}

impl Key for FlowKey6 {
    const MAPS: [&'static str; 3] = [names::FLOWS6, names::BIRTHS6, names::BLOCKS6];
    const PROGRAMS: [&'static str; 4] = ["retire6", "vacate6", "place6", "forget6"];
}

/// An entry as it was found.
#[derive(Clone, Debug)]
pub struct Seen<K> {
    /// Index of its slot: the same for as long as it is there, and nobody else's.
    pub index: u32,
    /// Whether packets find it.
    pub tenancy: Tenancy,
    /// Its key.
    pub key: K,
    /// The entry.
    pub entry: FlowEntry,
    /// How it came to be.
    pub birth: Birth,
}

/// The programs that change a table for the controller.
#[derive(Debug)]
pub(super) struct Tending {
    /// Retires keys.
    pub retire: OwnedFd,
    /// Vacates slots.
    pub vacate: OwnedFd,
    /// Has directions placed.
    pub place: OwnedFd,
    /// Has flags that were seen again forgotten.
    pub forget: OwnedFd,
}

/// What one family's table is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// The map of slots.
    pub slots: OwnedFd,
    /// The map of births.
    pub births: OwnedFd,
    /// The map of blocks in use.
    pub blocks: OwnedFd,
    /// The programs that change it.
    pub tending: Tending,
    /// The map of both families' use.
    pub used: OwnedFd,
    /// What never changes.
    pub shape: Shape,
    /// Both families' handshakes.
    pub handshakes: Arc<Mapping<Handshake>>,
}

/// The table with keys `K`.
#[derive(Debug)]
pub struct FlowTable<K> {
    name: &'static str,
    pub(super) slots: OwnedFd,
    pub(super) births: OwnedFd,
    pub(super) blocks: Mapping<SharedU64>,
    tending: Tending,
    pub(super) used: Table<u32, Used>,
    pub(super) shape: Shape,
    handshakes: Arc<Mapping<Handshake>>,
    keys: PhantomData<fn() -> K>,
}

impl<K: Key> FlowTable<K> {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let Parts { slots, births, blocks, tending, used, shape, handshakes } = parts;
        let name = K::MAPS[0];
        let info =
            sys::map_info(slots.as_fd()).map_err(|source| DatapathError::map("read the size of", name, source))?;
        if info.value_size as usize != size_of::<Slot<K>>() || info.max_entries != shape.slots() {
            return Err(DatapathError::Layout { name, key_size: info.key_size, value_size: info.value_size });
        }
        let blocks = Mapping::writable(blocks.as_fd(), shape.block_words() as usize)
            .map_err(|source| DatapathError::map("map the blocks of", name, source))?;
        let used = Table::new(names::USED, used)?;
        Ok(Self { name, slots, births, blocks, tending, used, shape, handshakes, keys: PhantomData })
    }

    /// Room for so many entries; a connection takes two.
    pub fn max_entries(&self) -> u32 {
        self.shape.most
    }

    /// Slots in use, those on their way out included.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn used(&self) -> Result<u32> {
        Ok(self.used.read(&(K::FAMILY as u32))?.map_or(0, |used| used.slots.load()))
    }

    /// The entry with this key, as it is now.
    pub fn read(&self, key: &K) -> Option<FlowEntry> {
        find(self, key).map(|slot| slot.entry.clone())
    }

    /// Round trips of the handshake of the connection that an entry belongs to. `None`: it had none, or others have had its
    /// cell since.
    pub fn round_trips(&self, key: &K, entry: &FlowEntry) -> Option<RoundTrips> {
        let place = Place::of_flow(key, entry, |originator| originator.hash(&self.shape))?;
        self.handshakes.get(place.index as usize)?.round_trips(place)
    }

    /// Calls `found` with the number of each key and its entry as it is now, in no order. Many at once cost a fraction of as many
    /// calls of [`FlowTable::read`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_many(&self, keys: &[K], mut found: impl FnMut(usize, Option<&FlowEntry>)) -> Result<()> {
        let mut homes: Vec<_> = keys.iter().enumerate().map(|(at, key)| (home(key, &self.shape), at)).collect();
        homes.sort_unstable();
        let mut rest = &homes[..];
        while let Some(&(begin, _)) = rest.first() {
            let (these, others) = rest.split_at(rest.partition_point(|(home, _)| home - begin < AT_ONCE));
            let last = these.last().map_or(begin, |(home, _)| *home);
            let slots = self.slots_at(begin, last - begin + WINDOW)?;
            for (home, at) in these {
                let window = &slots[(home - begin) as usize..][..WINDOW as usize];
                match find_at_home(window, &keys[*at]) {
                    Some(slot) => found(*at, slot.map(|slot| &slot.entry)),
                    None => found(*at, self.read(&keys[*at]).as_ref()),
                }
            }
            rest = others;
        }
        Ok(())
    }

    /// Removes entries; returns how many there were. Their slots are freed by the sweeper.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, keys: &[K]) -> Result<u32> {
        self.tend(&self.tending.retire, keys)
    }

    /// Frees slots whose entries have been dying since before the last grace period.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn vacate(&self, indexes: &[u32]) -> Result<u32> {
        self.tend(&self.tending.vacate, indexes)
    }

    /// Has the next packets of these TCP entries say where they stand in the sequence space.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn place(&self, keys: &[K]) -> Result<u32> {
        self.tend(&self.tending.place, keys)
    }

    /// Has the entries with these indexes forget that the flags in these bits of their status were seen again. For the sweeper,
    /// before it vacates any of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_again(&self, flags: &[[u32; 2]]) -> Result<u32> {
        self.tend(&self.tending.forget, flags)
    }

    fn tend<T: IntoBytes + Immutable>(&self, program: &OwnedFd, elements: &[T]) -> Result<u32> {
        let mut done = 0;
        for batch in elements.chunks(tend::BATCH) {
            let mut frame = vec![0; tend::HEADER];
            frame.extend_from_slice(batch.as_bytes());
            done += sys::run_program(program.as_fd(), &frame)
                .map_err(|source| DatapathError::map("change", self.name, source))?;
        }
        Ok(done)
    }

    /// Calls `visit` for every entry that packets find, in ascending order of their indexes. Entries that come or go meanwhile may
    /// be seen or not; none is seen twice.
    ///
    /// # Errors
    /// When the kernel refuses, or `visit`'s own.
    pub fn visit(&self, mut visit: impl FnMut(&Seen<K>) -> Result<()>) -> Result<()> {
        self.visit_all(|seen| if seen.tenancy == Tenancy::Live { visit(seen) } else { Ok(()) })
    }

    /// The same with those that are on their way out.
    ///
    /// # Errors
    /// When the kernel refuses, or `visit`'s own.
    pub fn visit_all(&self, mut visit: impl FnMut(&Seen<K>) -> Result<()>) -> Result<()> {
        for (word, bits) in (0..).zip(self.blocks.iter()) {
            let mut left = bits.load();
            while left != 0 {
                let first = left.trailing_zeros();
                let count = (left >> first).trailing_ones();
                left &= !(u64::MAX >> (64 - count) << first);
                self.visit_blocks(word * 64 + first, count, &mut visit)?;
            }
        }
        Ok(())
    }

    /// Calls `visit` for the entries at these indexes, which ascend, as they are now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn visit_at(&self, indexes: &[u32], mut visit: impl FnMut(&Seen<K>)) -> Result<()> {
        let mut rest = indexes;
        while let Some(&begin) = rest.first() {
            let (these, others) = rest.split_at(rest.partition_point(|index| index - begin < AT_ONCE));
            let length = these.last().map_or(0, |last| last - begin + 1);
            let (slots, births) = (self.slots_at(begin, length)?, self.births_at(begin, length)?);
            for index in these {
                let at = (index - begin) as usize;
                if let Some(seen) = see(*index, &slots[at], &births[at]) {
                    visit(&seen);
                }
            }
            rest = others;
        }
        Ok(())
    }

    /// `count` slots from `begin` on.
    fn slots_at(&self, begin: u32, count: u32) -> Result<Mapping<Slot<K>>> {
        Mapping::readable(self.slots.as_fd(), begin as usize, count as usize).map_err(|source| self.unseen(source))
    }

    /// The births of the same.
    fn births_at(&self, begin: u32, count: u32) -> Result<Mapping<Birth>> {
        Mapping::readable(self.births.as_fd(), begin as usize, count as usize).map_err(|source| self.unseen(source))
    }

    fn unseen(&self, source: std::io::Error) -> DatapathError {
        DatapathError::map("look into", self.name, source)
    }

    /// Indexes of the entries that are on their way out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn dying(&self) -> Result<Vec<u32>> {
        let mut dying = Vec::new();
        self.visit_all(|seen| {
            dying.extend((seen.tenancy == Tenancy::Dying).then_some(seen.index));
            Ok(())
        })?;
        Ok(dying)
    }

    /// `count` blocks in a row.
    fn visit_blocks(&self, first: u32, count: u32, visit: &mut impl FnMut(&Seen<K>) -> Result<()>) -> Result<()> {
        let begin = first * BLOCK;
        let length = (count * BLOCK).min(self.shape.slots() - begin);
        let (slots, births) = (self.slots_at(begin, length)?, self.births_at(begin, length)?);
        let (slots, births) = (slots.chunks(BLOCK as usize), births.chunks(BLOCK as usize));
        for (block, (slots, births)) in (first..).zip(slots.zip(births)) {
            let mut is_empty = true;
            for (index, (slot, birth)) in (block * BLOCK..).zip(slots.iter().zip(births)) {
                is_empty &= slot.entry.status.load() == 0;
                if let Some(seen) = see(index, slot, birth) {
                    visit(&seen)?;
                }
            }
            if is_empty {
                self.clear_block(block, slots);
            }
        }
        Ok(())
    }

    /// Nobody has to look into this block again, until somebody uses it.
    fn clear_block(&self, block: u32, slots: &[Slot<K>]) {
        let Some(word) = self.blocks.get((block / 64) as usize) else { return };
        let bit = 1 << (block % 64);
        word.and(!bit);
        // Who claims a slot does so first, then sees to the bit: either he saw it cleared, or we see his claim.
        fence(Ordering::SeqCst);
        if slots.iter().any(|slot| slot.entry.status.load() != 0) {
            word.or(bit);
        }
    }
}

/// A copy of what is in a slot.
fn see<K: Key>(index: u32, slot: &Slot<K>, birth: &Birth) -> Option<Seen<K>> {
    let tenancy = Tenancy::of(slot);
    if tenancy == Tenancy::Vacant {
        return None;
    }
    let seen = Seen { index, tenancy, key: K::read(&slot.key), entry: slot.entry.clone(), birth: birth.clone() };
    // Freed meanwhile, and perhaps another's already: then it was not there when this look began.
    fence(Ordering::Acquire);
    (Tenancy::of(slot) != Tenancy::Vacant && seen.key.is(&slot.key)).then_some(seen)
}

/// Returns when every program has ended that runs now: it may have found an entry before that was removed.
pub fn wait_for_programs() {
    if sys::wait_for_readers().is_err() {
        // Where the kernel cannot say (nohz_full): a hundred times as long as a CPU works on packets in one go.
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A copy of a slot.
pub struct Copied<K: FlowKey>(Slot<K>);

impl<K: FlowKey> std::ops::Deref for Copied<K> {
    type Target = Slot<K>;

    fn deref(&self) -> &Slot<K> {
        &self.0
    }
}

/// For `find`: copies, one system call each.
impl<K: Key> Slots<K> for FlowTable<K> {
    type Slot<'s>
        = Copied<K>
    where
        K: 's;

    fn shape(&self) -> Option<&Shape> {
        Some(&self.shape)
    }

    fn used(&self) -> Option<&Used> {
        None
    }

    fn slot(&self, index: u32) -> Option<Copied<K>> {
        let mut bytes = vec![0; size_of::<Slot<K>>()];
        sys::read_element(Command::Lookup, self.slots.as_fd(), index.as_bytes(), &mut bytes).ok()?;
        Some(Copied(Slot::read_from_bytes(&bytes).ok()?))
    }

    fn birth(&self, _: u32) -> Option<&Birth> {
        None
    }

    fn blocks(&self, _: u32) -> Option<&SharedU64> {
        None
    }
}
