//! Entries made from user space, by the very code that packets run, in a mapping of the whole table: for measuring with
//! tables that are full, and for tests. Packets may run meanwhile.

use super::flow_table::{FlowTable, Key};
use super::mapping::Mapping;
use super::{DatapathError, Result};
use forwarder_ebpf::abi::{Birth, FlowEntry, Shape, SharedU64, Slot, Used};
use forwarder_ebpf::flow_table::{Slots, insert};
use forwarder_ebpf::tables::Refused;
use std::os::fd::AsFd;

/// A whole table, to insert into.
#[derive(Debug)]
pub struct Filler<'t, K: Key> {
    table: &'t FlowTable<K>,
    slots: Mapping<Slot<K>>,
    births: Mapping<Birth>,
    used: Mapping<Used>,
}

impl<'t, K: Key> Filler<'t, K> {
    /// Of this table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(table: &'t FlowTable<K>) -> Result<Self> {
        let failed = |source| DatapathError::map("map", K::MAPS[0], source);
        let count = table.shape.slots() as usize;
        let slots = Mapping::writable(table.slots.as_fd(), count).map_err(failed)?;
        let births = Mapping::writable(table.births.as_fd(), count).map_err(failed)?;
        let used = Mapping::writable(table.used.descriptor(), 1 + K::FAMILY as usize).map_err(failed)?;
        Ok(Self { table, slots, births, used })
    }

    /// Inserts an entry unless its key is taken.
    ///
    /// # Errors
    /// As `flow_table::insert`.
    pub fn insert(&self, key: &K, entry: &FlowEntry, birth: &Birth) -> std::result::Result<(), Refused> {
        insert(self, key, entry, birth)
    }
}

impl<K: Key> Slots<K> for Filler<'_, K> {
    type Slot<'s>
        = &'s Slot<K>
    where
        Self: 's;

    fn shape(&self) -> Option<&Shape> {
        Some(&self.table.shape)
    }

    fn used(&self) -> Option<&Used> {
        self.used.get(K::FAMILY as usize)
    }

    fn slot(&self, index: u32) -> Option<&Slot<K>> {
        self.slots.get(index as usize)
    }

    fn birth(&self, index: u32) -> Option<&Birth> {
        self.births.get(index as usize)
    }

    fn blocks(&self, word: u32) -> Option<&SharedU64> {
        self.table.blocks.get(word as usize)
    }
}
