//! The flow table: an array of slots with open addressing, the same code over the kernel's map, the controller's view of
//! it, and the sim's memory.
//!
//! A key's hash names three windows of [`WINDOW`] slots each, and its entry is in the first slot of them that was free when it
//! came. Nearly always that is the very first, so that finding an entry costs one memory access and not the chain of
//! three that a hash map of the kernel takes: once the table is larger than the caches that is what counts.
//!
//! ```text
//! FREE -> CLAIMED -> LIVE -> DYING -> FREE
//!   insert     insert  retire   vacate
//! ```
//!
//! - `insert` claims a slot by compare-and-exchange, writes it, looks for a rival that claimed another slot for the same
//!   key, and publishes it. Of two CPUs that insert one key at the same time at most one succeeds: each looks only after
//!   its own claim is seen by all.
//! - `retire` makes an entry unfindable; its memory and counters stay, because another CPU may just be counting there.
//! - `vacate` makes room, on the controller's behalf, after a grace period in which everybody who could have found the entry has ended.
//!   So no packet is ever counted in another flow's entry, and the last counters are exact.
//! - `passed` counts per slot the entries that went past it to a later one. It goes up before such an entry is published and
//!   down after it is gone, so who looks for a key may stop where nobody passed.

use crate::abi::{Birth, FlowEntry, FlowKey, Shape, SharedU64, Slot, Used, status};
use crate::tables::Refused;
use core::ops::Deref;

/// Slots in one window.
pub const WINDOW: u32 = 16;
/// Slots that can have a key's entry. With two windows one of two million IPv6 entries found no place in a table that was
/// nearly full.
const PROBES: u32 = 3 * WINDOW;
/// The same for who may be content with a probable answer.
const FEW_PROBES: u32 = 8;

/// States in the upper two bits of an entry's status. A free slot's status is all zero; a claimed one's has bits of the hash
/// in the rest.
const FREE: u32 = 0;
const CLAIMED: u32 = 1 << 30;
const LIVE: u32 = 2 << 30;
const DYING: u32 = 3 << 30;
const TENANCY: u32 = status::TENANCY;
/// From live to dying.
const RETIRED: u32 = 1 << 30;

/// Slots whose use is told by one bit of [`Slots::blocks`], so that a sweep need not read what nobody ever used.
pub const BLOCK: u32 = 64;

/// The memory of one family's table.
pub trait Slots<K: FlowKey> {
    /// A slot, or in user space a copy of it.
    type Slot<'s>: Deref<Target = Slot<K>>
    where
        Self: 's;

    /// What never changes in it. `None` only when the controller never wrote it.
    fn shape(&self) -> Option<&Shape>;
    /// How much of it is in use.
    fn used(&self) -> Option<&Used>;
    /// The slot at `index`.
    fn slot(&self, index: u32) -> Option<Self::Slot<'_>>;
    /// How the entry at `index` came to be.
    fn birth(&self, index: u32) -> Option<&Birth>;
    /// Bits of 64 blocks, from block `64 * word` on: set where a slot is, or was, in use.
    fn blocks(&self, word: u32) -> Option<&SharedU64>;
}

/// Where a key's entry can be.
struct Place {
    first: u32,
    second: u32,
    third: u32,
    /// Status of a slot that is claimed for the key.
    claim: u32,
}

impl Place {
    #[inline(always)]
    fn of<K: FlowKey>(key: &K, shape: &Shape) -> Self {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash = key.hash(shape);
        let hash = (hash ^ hash >> 32).wrapping_mul(GOLDEN);
        let again = (hash ^ hash >> 29).wrapping_mul(GOLDEN);
        // A share of all homes.
        let home = |half: u64| ((half * u64::from(shape.homes)) >> 32) as u32;
        Self {
            first: home(hash >> 32),
            second: home(again >> 32),
            third: home((again ^ again >> 32) & 0xffff_ffff),
            claim: CLAIMED | hash as u32 & !TENANCY,
        }
    }

    #[inline(always)]
    fn index(&self, probe: u32) -> u32 {
        match probe / WINDOW {
            0 => self.first + probe,
            1 => self.second + probe % WINDOW,
            _ => self.third + probe % WINDOW,
        }
    }

    /// Whether an earlier probe came to the slot at `index` as well: windows may overlap.
    #[inline(always)]
    fn was_at(&self, index: u32, probe: u32) -> bool {
        let (first, second) = (index.wrapping_sub(self.first), index.wrapping_sub(self.second));
        (probe >= WINDOW && first < WINDOW) | (probe >= 2 * WINDOW && second < WINDOW)
    }
}

/// The slot with this key's entry.
#[inline(always)]
pub fn find<'s, K: FlowKey, S: Slots<K>>(slots: &'s S, key: &K) -> Option<S::Slot<'s>> {
    find_within(slots, key, PROBES)
}

/// The same, but in crowded places it may miss an entry. For loops that ask often: less work for them and for the verifier.
#[inline(always)]
pub fn find_nearby<'s, K: FlowKey, S: Slots<K>>(slots: &'s S, key: &K) -> Option<S::Slot<'s>> {
    find_within(slots, key, FEW_PROBES)
}

#[inline(always)]
fn find_within<'s, K: FlowKey, S: Slots<K>>(slots: &'s S, key: &K, probes: u32) -> Option<S::Slot<'s>> {
    let place = Place::of(key, slots.shape()?);
    let mut probe = 0;
    while probe < probes {
        let slot = slots.slot(place.index(probe))?;
        if has(&slot, key) {
            return Some(slot);
        }
        if slot.passed() == 0 {
            break;
        }
        probe += 1;
    }
    None
}

/// Where a key is looked for first; up to [`WINDOW`] slots from there on.
pub fn home<K: FlowKey>(key: &K, shape: &Shape) -> u32 {
    Place::of(key, shape).first
}

/// Looks for a key in the first of its windows, the slots from its home on. `None`: it may be in another.
pub fn find_at_home<'s, K: FlowKey + 's>(
    window: impl IntoIterator<Item = &'s Slot<K>>,
    key: &K,
) -> Option<Option<&'s Slot<K>>> {
    for slot in window {
        if has(slot, key) {
            return Some(Some(slot));
        }
        if slot.passed() == 0 {
            return Some(None);
        }
    }
    None
}

#[inline(always)]
fn has<K: FlowKey>(slot: &Slot<K>, key: &K) -> bool {
    slot.entry.status.load() & TENANCY == LIVE && key.is(&slot.key)
}

/// Has the memory come that an insertion of this key is going to write, while the caller does something else: what is
/// loaded here is not waited for, and a store would be, at the next atomic exchange.
#[inline(always)]
pub fn expect<K: FlowKey, S: Slots<K>>(slots: &S, key: &K) {
    let Some(shape) = slots.shape() else { return };
    let index = Place::of(key, shape).first;
    if let (Some(slot), Some(birth)) = (slots.slot(index), slots.birth(index)) {
        core::hint::black_box((birth.since.load(), slot.entry.status.load()));
    }
}

/// How the entry with this key came to be.
#[inline(always)]
pub fn find_birth<'s, K: FlowKey, S: Slots<K>>(slots: &'s S, key: &K) -> Option<&'s Birth> {
    let place = Place::of(key, slots.shape()?);
    let mut probe = 0;
    while probe < PROBES {
        let slot = slots.slot(place.index(probe))?;
        if has(&slot, key) {
            return slots.birth(place.index(probe));
        }
        if slot.passed() == 0 {
            break;
        }
        probe += 1;
    }
    None
}

/// Inserts unless the key is taken; atomic over all CPUs.
///
/// # Errors
/// `Refused::Exists` when the key is taken, `Refused::Busy` when another CPU inserts it in this moment, `Refused::Full` when
/// the table has no room.
#[inline(always)]
pub fn insert<K: FlowKey, S: Slots<K>>(slots: &S, key: &K, entry: &FlowEntry, birth: &Birth) -> Result<(), Refused> {
    let (Some(shape), Some(used)) = (slots.shape(), slots.used()) else { return Err(Refused::Full) };
    if used.slots.load() >= shape.most {
        return Err(if find(slots, key).is_some() { Refused::Exists } else { Refused::Full });
    }
    let place = Place::of(key, shape);
    let Some(own) = claim(slots, &place, birth) else { return Err(Refused::Full) };
    key.write(&own.key);
    own.entry.copy_from(entry);
    let rival = rival(slots, key, &place, &own);
    if rival != FREE {
        // No store: what was written above has to be there before another may write.
        own.entry.status.exchange(place.claim, FREE);
        withdraw(slots, &place, Some(&own));
        return Err(if rival == LIVE { Refused::Exists } else { Refused::Busy });
    }
    used.slots.add(1);
    own.entry.status.exchange(place.claim, entry.status.load() & !TENANCY | LIVE);
    Ok(())
}

/// Claims the first free slot, and is counted as having passed those before it. One that it has passed is not claimed when it
/// has become free since: who withdraws must be able to tell what was passed.
#[inline(always)]
fn claim<'s, K: FlowKey, S: Slots<K>>(slots: &'s S, place: &Place, birth: &Birth) -> Option<S::Slot<'s>> {
    let mut probe = 0;
    while probe < PROBES {
        let index = place.index(probe);
        let slot = slots.slot(index)?;
        let is_free = slot.entry.status.load() == FREE && !place.was_at(index, probe);
        if is_free && slot.entry.status.exchange(FREE, place.claim) {
            mark_block(slots, index);
            let own = slots.birth(index)?;
            own.since.store(birth.since.load());
            own.rule.store(birth.rule.load());
            own.arrival.store(birth.arrival.load());
            return Some(slot);
        }
        slot.let_pass();
        probe += 1;
    }
    withdraw(slots, place, None);
    None
}

/// Notes that a slot is in use, for the sweep.
#[inline(always)]
fn mark_block<K: FlowKey, S: Slots<K>>(slots: &S, index: u32) {
    let bit = 1 << (index / BLOCK % 64);
    if let Some(word) = slots.blocks(index / BLOCK / 64)
        && word.load() & bit == 0
    {
        word.or(bit);
    }
}

/// Whether another slot than the own one has this key (`LIVE`) or is claimed for it (`CLAIMED`); else `FREE`. Nobody stops before
/// the own slot, because this key has passed all before it.
#[inline(always)]
fn rival<K: FlowKey, S: Slots<K>>(slots: &S, key: &K, place: &Place, own: &Slot<K>) -> u32 {
    let mut probe = 0;
    while probe < PROBES {
        let Some(slot) = slots.slot(place.index(probe)) else { return FREE };
        // Looked at once: between two looks, what is claimed may be published.
        let bits = slot.entry.status.load();
        if bits & TENANCY == LIVE && key.is(&slot.key) {
            return LIVE;
        }
        if bits == place.claim && !core::ptr::eq(&*slot, own) {
            return CLAIMED;
        }
        if slot.passed() == 0 {
            return FREE;
        }
        probe += 1;
    }
    FREE
}

/// Takes back that all slots before the own one (without one: all) were passed.
#[inline(always)]
fn withdraw<K: FlowKey, S: Slots<K>>(slots: &S, place: &Place, own: Option<&Slot<K>>) {
    let mut probe = 0;
    while probe < PROBES {
        let Some(slot) = slots.slot(place.index(probe)) else { return };
        if own.is_some_and(|own| core::ptr::eq(&*slot, own)) {
            return;
        }
        slot.take_back();
        probe += 1;
    }
}

/// Makes the entry unfindable. False: it was not there. Its slot stays in use until it is vacated.
#[inline(always)]
pub fn retire<K: FlowKey, S: Slots<K>>(slots: &S, key: &K) -> bool {
    match find(slots, key) {
        Some(slot) => {
            slot.entry.status.or(RETIRED);
            true
        }
        None => false,
    }
}

/// Has the entry's next packet with one of these signals take the slow path (`status::WATCH`). False: there is no such entry.
#[inline(always)]
pub fn watch<K: FlowKey, S: Slots<K>>(slots: &S, key: &K, signals: u8) -> bool {
    find(slots, key).map(|slot| slot.entry.status.or(signals.into())).is_some()
}

/// Has the entry at `index` forget those of these bits that say which TCP flags were seen again (`status::AGAIN`). It may be on
/// its way out, but only who asks for this vacates it. False: there is no such slot.
#[inline(always)]
pub fn forget_again<K: FlowKey, S: Slots<K>>(slots: &S, [index, bits]: [u32; 2]) -> bool {
    slots.slot(index).map(|slot| slot.entry.status.and(!(bits & status::AGAIN))).is_some()
}

impl Shape {
    /// Of a table for so many entries with keys `K`. `secret` is random.
    pub const fn of<K: FlowKey>(entries: u32, secret: [u32; 10]) -> Self {
        let slots = K::SLOTS_FOR_7_ENTRIES * (entries / 7) + K::SLOTS_FOR_7_ENTRIES * (entries % 7) / 7;
        Self { homes: if slots < 2 * WINDOW { WINDOW } else { slots - WINDOW }, most: entries, secret }
    }

    /// Slots of the array.
    pub const fn slots(&self) -> u32 {
        self.homes + WINDOW
    }

    /// Words of the bits that tell which blocks are in use.
    pub const fn block_words(&self) -> u32 {
        self.slots().div_ceil(64 * BLOCK)
    }
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// Nothing, or nothing yet.
    Vacant,
    /// An entry that packets find.
    Live,
    /// An entry that nobody finds any more.
    Dying,
}

impl Tenancy {
    /// Of this slot.
    pub fn of<K: FlowKey>(slot: &Slot<K>) -> Self {
        match slot.entry.status.load() & TENANCY {
            LIVE => Self::Live,
            DYING => Self::Dying,
            _ => Self::Vacant,
        }
    }
}

/// Frees the slot at `index`, whose entry has been dying since before everybody who could have found it ended. False: it has
/// no such entry.
#[inline(always)]
pub fn vacate<K: FlowKey, S: Slots<K>>(slots: &S, index: u32) -> bool {
    let (Some(slot), Some(shape), Some(used)) = (slots.slot(index), slots.shape(), slots.used()) else { return false };
    let bits = slot.entry.status.load();
    if bits & TENANCY != DYING {
        return false;
    }
    let place = Place::of(&K::read(&slot.key), shape);
    if !slot.entry.status.exchange(bits, FREE) {
        return false;
    }
    withdraw(slots, &place, Some(&slot));
    used.slots.add(u32::MAX);
    true
}

#[cfg(test)]
mod stress;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{FlowKey4, FlowKey6, SharedU32};
    use crate::sim::Flows;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::vec::Vec;

    fn key(number: u32) -> FlowKey4 {
        FlowKey4::pack(u64::from(number) << 8 | 10, number, 17, 1)
    }

    fn entry() -> FlowEntry {
        FlowEntry { status: SharedU32::new(status::ORIGINATOR), ..FlowEntry::default() }
    }

    fn put(flows: &Flows<FlowKey4>, number: u32) -> Result<(), Refused> {
        flows.insert(&key(number), &entry(), &Birth::default())
    }

    fn passed(flows: &Flows<FlowKey4>) -> u64 {
        (0..).map_while(|index| flows.slot(index)).map(|slot| slot.passed()).sum()
    }

    #[test]
    fn a_table_takes_what_it_was_made_for_and_finds_all_of_it() {
        let flows = Flows::<FlowKey4>::new(10_000);
        for number in 0..10_000 {
            assert_eq!(put(&flows, number), Ok(()), "{number}");
            assert_eq!(put(&flows, number), Err(Refused::Exists), "{number}");
        }
        assert_eq!(put(&flows, 10_000), Err(Refused::Full));
        let shape = flows.shape().expect("a table has a shape");
        for number in 0..20_000 {
            let begin = home(&key(number), shape);
            match find_at_home((begin..begin + WINDOW).filter_map(|index| flows.slot(index)), &key(number)) {
                Some(found) => assert_eq!(found.is_some(), number < 10_000, "{number}"),
                None => assert_eq!(flows.find(&key(number)).is_some(), number < 10_000, "{number}"),
            }
        }
        assert!((0..10_000).all(|number| flows.find(&key(number)).is_some()));
        assert!(flows.find(&key(10_000)).is_none());
        assert_eq!(flows.all().len(), 10_000);
    }

    #[test]
    fn in_a_full_ipv6_table_most_entries_stand_where_they_belong() {
        let flows = Flows::<FlowKey6>::new(7000);
        let key = |number: u64| FlowKey6::pack([1, number, 2, 3], 4, 6, 1);
        let (mut first, mut refused) = (0, 0);
        for number in 0..7000 {
            refused += u32::from(flows.insert(&key(number), &entry(), &Birth::default()).is_err());
        }
        for number in 0..7000 {
            let place = Place::of(&key(number), flows.shape().expect("a table has a shape"));
            first += u32::from(flows.slot(place.first).is_some_and(|slot| has(slot, &key(number))));
        }
        assert!(first > 4900 && refused == 0, "{first} of 7000, {refused} refused");
    }

    #[test]
    fn what_is_removed_is_unfindable_at_once_and_its_room_comes_after_the_grace_period() {
        let flows = Flows::<FlowKey4>::new(2);
        assert_eq!((put(&flows, 1), put(&flows, 2)), (Ok(()), Ok(())));
        let found = flows.find(&key(1)).expect("just inserted");
        assert!(flows.remove(&key(1)) && !flows.remove(&key(1)) && flows.find(&key(1)).is_none());
        found.packets.add(1);
        assert_eq!((found.packets.load(), put(&flows, 3)), (1, Err(Refused::Full)));
        flows.vacate();
        assert_eq!((put(&flows, 3), put(&flows, 1)), (Ok(()), Err(Refused::Full)));
    }

    #[test]
    fn whatever_comes_and_goes_nothing_is_passed_in_the_end() {
        let flows = Flows::<FlowKey4>::new(700);
        for round in 0..50 {
            for number in 0..700 {
                assert_eq!(put(&flows, round * 1000 + number), Ok(()));
            }
            assert!(passed(&flows) > 0);
            for number in (0..700).rev() {
                assert!(flows.remove(&key(round * 1000 + number)));
            }
            flows.vacate();
            assert_eq!((passed(&flows), flows.all().len()), (0, 0));
        }
    }

    #[test]
    fn of_many_that_insert_one_key_at_most_one_succeeds() {
        const THREADS: u32 = 4;
        const KEYS: u32 = 20_000;
        let flows = Flows::<FlowKey4>::new(KEYS);
        let (barrier, inserted) = (Barrier::new(THREADS as usize), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    for number in 0..KEYS {
                        if insert(&flows, &key(number), &entry(), &Birth::default()).is_ok() {
                            inserted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let live: Vec<_> = (0..KEYS).filter(|number| find(&flows, &key(*number)).is_some()).collect();
        assert_eq!(inserted.into_inner() as usize, live.len());
        assert!(live.len() > KEYS as usize * 9 / 10, "{}", live.len());
    }
}
