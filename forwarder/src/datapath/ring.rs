//! A ring that the datapath writes records to, and one reader waits at.

use super::{Datapath, DatapathError, Result, watch};
use aya::maps::{MapData, RingBuf};
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// The ring.
pub(super) struct Ring {
    name: &'static str,
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Ring {
    /// Takes the map of this name; there is one reader. To be called on a runtime with I/O.
    ///
    /// # Errors
    /// When it was taken before, or cannot be mapped into memory.
    pub fn take(datapath: &Datapath, name: &'static str) -> Result<Self> {
        let mut programs = datapath.programs.lock().expect("no thread panics while it holds the programs");
        let map = programs.take_map(name).ok_or(DatapathError::Missing(name))?;
        let ring = RingBuf::try_from(map).map_err(|source| DatapathError::Load(Box::new(source)))?;
        let failed = |source| DatapathError::map("wait for", name, source);
        let ready = watch(ring.as_fd().try_clone_to_owned().map_err(failed)?).map_err(failed)?;
        Ok(Self { name, ring, ready })
    }

    /// Waits for the next record that `parse` understands; of another size can only be another version's, from before a
    /// restart. May be cancelled.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub async fn next<T>(&mut self, parse: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        loop {
            while let Some(record) = self.ring.next() {
                if let Some(parsed) = parse(&record) {
                    return Ok(parsed);
                }
            }
            let failed = |source| DatapathError::map("wait for", self.name, source);
            let mut guard = self.ready.readable().await.map_err(failed)?;
            // Before the ring is looked at again: a record that comes in between makes it ready anew.
            guard.clear_ready();
        }
    }
}
