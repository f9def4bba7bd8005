//! Tables of the datapath: flows, and fragment trains that push out the oldest.

use crate::abi::{Birth, FlowEntry, FlowKey, MAX_FRAGMENT_TRAINS, Shape, SharedU64, Slot, Used};
use crate::flow_table::{self, Slots, Tenancy};
use crate::tables::Refused;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

/// A flow table. Who has found an entry may use it, whether it is still in the table or not, until [`Flows::vacate`].
pub struct Flows<K: FlowKey> {
    slots: Vec<Slot<K>>,
    shape: Shape,
    used: Used,
    births: Vec<Birth>,
    blocks: Vec<SharedU64>,
    /// Something was removed since room was made.
    has_dying: AtomicBool,
}

impl<K: FlowKey> Slots<K> for Flows<K> {
    type Slot<'s>
        = &'s Slot<K>
    where
        K: 's;

    #[inline(always)]
    fn shape(&self) -> Option<&Shape> {
        Some(&self.shape)
    }

    #[inline(always)]
    fn used(&self) -> Option<&Used> {
        Some(&self.used)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot<K>> {
        self.slots.get(index as usize)
    }

    #[inline(always)]
    fn birth(&self, index: u32) -> Option<&Birth> {
        self.births.get(index as usize)
    }

    #[inline(always)]
    fn blocks(&self, word: u32) -> Option<&SharedU64> {
        self.blocks.get(word as usize)
    }
}

impl<K: FlowKey + Default + Ord> Flows<K> {
    /// Room for so many entries.
    pub fn new(capacity: u32) -> Self {
        // Any numbers are as good as secret ones here, and these are the same in every run.
        let secret = std::array::from_fn(|index| 0x9e37_79b9u32.wrapping_mul(index as u32 + 1));
        let shape = Shape::of::<K>(capacity, secret);
        let slots = (0..shape.slots()).map(|_| Slot::default()).collect();
        let births = (0..shape.slots()).map(|_| Birth::default()).collect();
        let blocks = (0..shape.block_words()).map(|_| SharedU64::default()).collect();
        Self { slots, shape, used: Used::default(), births, blocks, has_dying: AtomicBool::new(false) }
    }

    /// The entry with this key.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<&FlowEntry> {
        flow_table::find(self, key).map(|slot| &slot.entry)
    }

    /// Inserts unless the key is taken.
    ///
    /// # Errors
    /// As `FlowTable::insert_flow`.
    pub fn insert(&self, key: &K, entry: &FlowEntry, birth: &Birth) -> Result<(), Refused> {
        flow_table::insert(self, key, entry, birth)
    }

    /// The key's hash under the table's secret.
    pub fn hash(&self, key: &K) -> u64 {
        key.hash(&self.shape)
    }

    /// How the entry with this key came to be.
    pub fn birth(&self, key: &K) -> Option<&Birth> {
        flow_table::find_birth(self, key)
    }

    /// Removes an entry. False: it was not there.
    pub fn remove(&self, key: &K) -> bool {
        self.has_dying.store(true, Ordering::Relaxed);
        flow_table::retire(self, key)
    }

    /// Makes room of what was removed: a grace period has passed.
    pub fn vacate(&self) {
        if self.has_dying.swap(false, Ordering::Relaxed) {
            for index in 0..self.slots.len() as u32 {
                flow_table::vacate(self, index);
            }
        }
    }

    /// Every entry, in the order of the keys.
    pub fn all(&self) -> Vec<(K, &FlowEntry)> {
        let live = self.slots.iter().filter(|slot| Tenancy::of(slot) == Tenancy::Live);
        let mut all: Vec<_> = live.map(|slot| (K::read(&slot.key), &slot.entry)).collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

/// A table of fragment trains. The kernel's pushes out the least recently used, more or less; here it is the oldest.
#[derive(Debug)]
pub(super) struct Fragments<K, O> {
    owners: RefCell<(HashMap<K, O>, VecDeque<K>)>,
}

impl<K, O> Default for Fragments<K, O> {
    fn default() -> Self {
        Self { owners: RefCell::new((HashMap::new(), VecDeque::new())) }
    }
}

impl<K: Copy + Eq + Hash, O: Copy> Fragments<K, O> {
    pub(super) fn remember(&self, key: &K, owner: &O) {
        let (owners, order) = &mut *self.owners.borrow_mut();
        if owners.insert(*key, *owner).is_none() {
            order.push_back(*key);
        }
        if owners.len() > MAX_FRAGMENT_TRAINS as usize
            && let Some(oldest) = order.pop_front()
        {
            owners.remove(&oldest);
        }
    }

    pub(super) fn owner(&self, key: &K) -> Option<O> {
        self.owners.borrow().0.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_train_goes_first() {
        let trains = Fragments::default();
        for key in 0..=MAX_FRAGMENT_TRAINS {
            trains.remember(&key, &key);
        }
        assert_eq!((trains.owner(&0), trains.owner(&1)), (None, Some(1)));
    }
}
