//! Maps with the types of `forwarder_ebpf::abi`. One value per map; that the sizes agree with the kernel's is checked when
//! it is opened, so that what is read is what the types say.

use super::sys::{self, Command, Cursor};
use super::{DatapathError, Result};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Elements that one batch brings.
const BATCH: usize = 4096;
/// `BPF_ANY` (linux/bpf.h).
const ANY: u64 = 0;
/// `BPF_NOEXIST` (linux/bpf.h).
const NOEXIST: u64 = 1;

/// A key: plain bytes both ways.
pub trait Element: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Element for T {}

/// A value. Entries with shared integers are written whole and read whole; the kernel copies them word by word.
pub trait Value: FromBytes + IntoBytes + Clone {}
impl<T: FromBytes + IntoBytes + Clone> Value for T {}

/// A map from `K` to `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: OwnedFd,
    max_entries: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Element, V: Value> Table<K, V> {
    /// Wraps a map.
    pub(super) fn new(name: &'static str, map: OwnedFd) -> Result<Self> {
        let table = Self::with_value_size(name, map, size_of::<V>())?;
        Ok(table)
    }

    fn with_value_size(name: &'static str, map: OwnedFd, value_size: usize) -> Result<Self> {
        let info = sys::map_info(map.as_fd()).map_err(|source| DatapathError::map("read the size of", name, source))?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), value_size) {
            let (key_size, value_size) = (info.key_size, info.value_size);
            return Err(DatapathError::Layout { name, key_size, value_size });
        }
        Ok(Self { name, map, max_entries: info.max_entries, types: PhantomData })
    }

    /// The map.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Room for so many elements.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// The element with this key.
    ///
    /// # Errors
    /// When the kernel refuses, other than that there is none.
    pub fn read(&self, key: &K) -> Result<Option<V>> {
        self.read_by(Command::Lookup, key)
    }

    /// Takes the element with this key out, and returns what it was at that moment.
    ///
    /// # Errors
    /// When the kernel refuses, other than that there is none.
    pub fn take(&self, key: &K) -> Result<Option<V>> {
        self.read_by(Command::Take, key)
    }

    fn read_by(&self, command: Command, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        match sys::read_element(command, self.map.as_fd(), key.as_bytes(), value.as_mut_bytes()) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(DatapathError::map("read", self.name, error)),
        }
    }

    /// Writes an element, whether the key is taken or not.
    ///
    /// # Errors
    /// When there is no room, or the kernel refuses.
    pub fn write(&self, key: &K, value: &V) -> Result<()> {
        self.write_by(key, value, ANY)
    }

    /// Writes an element unless the key is taken.
    ///
    /// # Errors
    /// When it is, when there is no room, or the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.write_by(key, value, NOEXIST)
    }

    fn write_by(&self, key: &K, value: &V, flags: u64) -> Result<()> {
        let mut value = value.clone();
        sys::update_element(self.map.as_fd(), key.as_bytes(), value.as_mut_bytes(), flags)
            .map_err(|source| DatapathError::map("write", self.name, source))
    }

    /// Removes an element. False: it was not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool> {
        match sys::delete_element(self.map.as_fd(), key.as_bytes()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(DatapathError::map("remove from", self.name, error)),
        }
    }

    /// Calls `visit` for every element, batch by batch. Elements that come or go meanwhile may be seen or not; none is seen
    /// twice.
    ///
    /// # Errors
    /// When the kernel refuses, or `visit`'s own.
    pub fn visit(&self, mut visit: impl FnMut(&K, &V) -> Result<()>) -> Result<()> {
        let (mut keys, mut values) = (K::new_vec_zeroed(BATCH).ok(), V::new_vec_zeroed(BATCH).ok());
        let (Some(keys), Some(values)) = (&mut keys, &mut values) else { return Err(DatapathError::Memory) };
        let mut from: Option<Cursor> = None;
        loop {
            let (key_bytes, value_bytes) = (keys.as_mut_slice().as_mut_bytes(), values.as_mut_slice().as_mut_bytes());
            let batch = sys::lookup_batch(self.map.as_fd(), from, key_bytes, value_bytes, BATCH)
                .map_err(|source| DatapathError::map("read a batch of", self.name, source))?;
            for (key, value) in keys.iter().zip(values.iter()).take(batch.count) {
                visit(key, value)?;
            }
            match batch.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }
}

/// A per-CPU array of `V`.
#[derive(Debug)]
pub struct PerCpu<V> {
    table: Table<u32, V>,
    cpus: usize,
}

impl<V: Value> PerCpu<V> {
    /// Wraps a map; `cpus` is how many CPUs the kernel may have.
    pub(super) fn new(name: &'static str, map: OwnedFd, cpus: usize) -> Result<Self> {
        Ok(Self { table: Table::with_value_size(name, map, size_of::<V>())?, cpus })
    }

    /// The first `count` values, each folded over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_folded(&self, count: usize, mut fold: impl FnMut(&mut V, &V)) -> Result<Vec<V>> {
        let Self { table, cpus } = self;
        let bytes = size_of::<V>().next_multiple_of(8) * cpus;
        let (mut keys, mut values) = (vec![0; 4 * count], vec![0; bytes * count]);
        let batch = sys::lookup_batch(table.map.as_fd(), None, &mut keys, &mut values, count)
            .map_err(|source| DatapathError::map("read", table.name, source))?;
        let mut folded = vec![V::new_zeroed(); batch.count];
        for (sum, copies) in folded.iter_mut().zip(values.chunks_exact(bytes)) {
            for copy in copies.chunks_exact(bytes / cpus) {
                if let Ok((value, _)) = V::read_from_prefix(copy) {
                    fold(sum, &value);
                }
            }
        }
        Ok(folded)
    }

    /// Sets every value of every CPU to zero.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&self) -> Result<()> {
        (0..self.table.max_entries).try_for_each(|key| self.clear_one(key))
    }

    /// Sets one value of every CPU to zero.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear_one(&self, key: u32) -> Result<()> {
        let zeros = vec![0; size_of::<V>().next_multiple_of(8) * self.cpus];
        sys::update_element(self.table.map.as_fd(), key.as_bytes(), &zeros, ANY)
            .map_err(|source| DatapathError::map("clear", self.table.name, source))
    }
}
