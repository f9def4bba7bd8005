//! Hash maps of the datapath: preallocated flows, and fragment trains that push out the oldest.

use crate::abi::{FlowEntry, MAX_FRAGMENT_TRAINS};
use crate::tables::Refused;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::rc::Rc;
use std::vec::Vec;

/// A flow table. Entries are shared as in the kernel: who has found one may use it, whether it is still in the table or not.
#[derive(Debug)]
pub struct Flows<K> {
    entries: RefCell<HashMap<K, Rc<FlowEntry>>>,
    capacity: usize,
}

impl<K: Copy + Eq + Hash + Ord> Flows<K> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: RefCell::new(HashMap::with_capacity(capacity)), capacity }
    }

    /// The entry with this key.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<Rc<FlowEntry>> {
        self.entries.borrow().get(key).cloned()
    }

    /// Inserts unless the key is taken.
    ///
    /// # Errors
    /// As `FlowTable::insert_flow`.
    pub fn insert(&self, key: &K, entry: &FlowEntry) -> Result<(), Refused> {
        let mut entries = self.entries.borrow_mut();
        if entries.contains_key(key) {
            return Err(Refused::Exists);
        }
        if entries.len() >= self.capacity {
            return Err(Refused::Full);
        }
        entries.insert(*key, Rc::new(entry.clone()));
        Ok(())
    }

    /// Removes an entry. False: it was not there.
    pub fn remove(&self, key: &K) -> bool {
        self.entries.borrow_mut().remove(key).is_some()
    }

    /// Every entry, in the order of the keys.
    pub fn all(&self) -> Vec<(K, Rc<FlowEntry>)> {
        let mut all: Vec<_> = self.entries.borrow().iter().map(|(key, entry)| (*key, Rc::clone(entry))).collect();
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
    fn a_full_table_refuses_and_what_was_found_outlives_its_removal() {
        let flows = Flows::new(1);
        let entry = FlowEntry { partner_side: 3, ..FlowEntry::default() };
        assert_eq!(flows.insert(&1, &entry), Ok(()));
        assert_eq!(flows.insert(&1, &entry), Err(Refused::Exists));
        assert_eq!(flows.insert(&2, &entry), Err(Refused::Full));
        let found = flows.find(&1).expect("just inserted");
        assert!(flows.remove(&1) && !flows.remove(&1));
        assert_eq!((found.partner_side, flows.insert(&2, &entry)), (3, Ok(())));
    }

    #[test]
    fn the_oldest_train_goes_first() {
        let trains = Fragments::default();
        for key in 0..=MAX_FRAGMENT_TRAINS {
            trains.remember(&key, &key);
        }
        assert_eq!((trains.owner(&0), trains.owner(&1)), (None, Some(1)));
    }
}
