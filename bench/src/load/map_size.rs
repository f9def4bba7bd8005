//! What the kernel has allotted for an array that somebody else pinned.

use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, MapType};
use std::path::Path;

/// Layout of a pinned array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    entries: u32,
    value_bytes: u32,
}

impl MapSize {
    /// Memory of its values, bytes: each begins at a multiple of 8 (kernel, `kernel/bpf/arraymap.c`).
    pub fn bytes(self) -> u64 {
        u64::from(self.entries) * u64::from(self.value_bytes.next_multiple_of(8))
    }
}

/// The layout of the array that is pinned there.
///
/// # Errors
/// When nothing is, or something else.
pub fn map_size(pin: &Path) -> Result<MapSize> {
    let info = MapInfo::from_pin(pin).with_context(|| format!("cannot examine the map {}", pin.display()))?;
    ensure!(info.map_type()? == MapType::Array, "{} is no array", pin.display());
    Ok(MapSize { entries: info.max_entries(), value_bytes: info.value_size() })
}

#[cfg(test)]
mod tests {
    use super::MapSize;

    #[test]
    fn values_begin_at_multiples_of_eight() {
        assert_eq!(MapSize { entries: 10, value_bytes: 64 }.bytes(), 640);
        assert_eq!(MapSize { entries: 10, value_bytes: 4 }.bytes(), 80);
    }
}
