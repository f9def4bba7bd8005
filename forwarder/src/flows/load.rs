//! What the datapath adds up about new flows, set right by what a pass over the table has seen: flows that end are seen
//! here and nowhere else.
//!
//! What is added up is read before the pass. A flow that begins during it may be counted twice until the next one, and
//! never not at all: limits err on the side of the table. One that the pass ends counts as well, for it takes room until the
//! next one frees it: or a flood that lasts longer than its flows would have its share twice.

use super::list::Key;
use crate::datapath::{Datapath, DatapathError};
use forwarder_ebpf::abi::firewall::{SOURCE_CELLS, source_cells};
use std::net::IpAddr;

/// Family and side, as the datapath counts them.
pub const GROUPS: usize = 8;

/// The counting of one pass.
#[derive(Debug, Default)]
pub struct Load {
    added: [u32; GROUPS],
    unanswered: [u32; GROUPS],
    /// Of each cell, what was added up, and what is there; none when sources have no limit.
    sources: Option<(Vec<u32>, Vec<u32>)>,
}

impl Load {
    /// Reads what has been added up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin(datapath: &Datapath, with_sources: bool) -> Result<Self, DatapathError> {
        let sources =
            if with_sources { Some((datapath.read_sources_opened()?, vec![0; SOURCE_CELLS as usize])) } else { None };
        Ok(Self { added: datapath.read_unanswered()?, unanswered: [0; GROUPS], sources })
    }

    /// Counts one flow by its originator's key.
    pub fn count<K: Key>(&mut self, key: &K, is_answered: bool) {
        if !is_answered {
            self.unanswered[(K::FAMILY as usize & 1) << 2 | usize::from(key.side() & 3)] += 1;
        }
        if let Some((_, there)) = &mut self.sources {
            let source = match key.ends().0.ip() {
                IpAddr::V4(address) => u64::from(u32::from(address)),
                IpAddr::V6(address) => (u128::from(address) >> 64) as u64,
            };
            for cell in source_cells(source) {
                there[cell as usize] += 1;
            }
        }
    }

    /// Writes how many flows of each cell have ended; returns how many of each group are answered no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end(self, datapath: &Datapath) -> Result<[u32; GROUPS], DatapathError> {
        if let Some((opened, there)) = self.sources {
            let past: Vec<u32> = opened.iter().zip(&there).map(|(opened, there)| opened.wrapping_sub(*there)).collect();
            datapath.write_sources_past(&past)?;
        }
        Ok(std::array::from_fn(|group| self.added[group].wrapping_sub(self.unanswered[group])))
    }
}
