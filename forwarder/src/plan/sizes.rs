//! How large the flow tables are, and what they cost.

use super::{PlanError, Sizes, TableSize};
use crate::config::units::size_text;
use crate::config::{CONNECTIONS, Config};
use forwarder_ebpf::abi::{Birth, FlowKey, FlowKey4, FlowKey6, Shape, Slot};

/// A connection is an entry per direction.
const ENTRIES: u64 = 2;

/// The default's share of the machine's memory: at most an eighth. It is a power of two, so it is more than a sixteenth
/// between its bounds.
const DEFAULT_SHARE: u64 = 8;
/// Bounds of the default: enough for a small office; what the performance figures are made with.
const DEFAULT_MAX: (u32, u32) = (16 << 10, 1 << 20);
/// What is asked for may take half of the memory: tables are never swapped and cannot be given back.
const MOST_SHARE: u64 = 2;

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn table(self, connections: u32) -> TableSize {
        let entries = connections * ENTRIES as u32;
        let memory_bytes = match self {
            Self::V4 => bytes::<FlowKey4>(entries),
            Self::V6 => bytes::<FlowKey6>(entries),
        };
        TableSize { connections, memory_bytes }
    }
}

/// What the kernel takes for a table.
fn bytes<K: FlowKey>(entries: u32) -> u64 {
    u64::from(Shape::of::<K>(entries, [0; 10]).slots()) * (size_of::<Slot<K>>() + size_of::<Birth>()) as u64
}

impl TableSize {
    /// Entries to make the table with: two per connection.
    pub const fn entries(&self) -> u32 {
        // At most 2^25, see `CONNECTIONS`.
        self.connections * ENTRIES as u32
    }

    /// Memory of one connection, both directions, bytes rounded up.
    pub fn bytes_per_connection(&self) -> u64 {
        self.memory_bytes.div_ceil(u64::from(self.connections.max(1)))
    }
}

impl Sizes {
    /// Memory of both tables, bytes.
    pub const fn memory_bytes(&self) -> u64 {
        self.flows_v4.memory_bytes + self.flows_v6.memory_bytes
    }

    /// With this many IPv4 connections, and as many IPv6 ones or a quarter.
    fn with(max: u32, max_ipv6: Option<u32>) -> Self {
        let max_ipv6 = max_ipv6.unwrap_or((max / 4).max(*CONNECTIONS.start()));
        Self { flows_v4: Family::V4.table(max), flows_v6: Family::V6.table(max_ipv6) }
    }
}

/// As configured, or as fits the memory.
pub(super) fn choose(config: &Config, memory_bytes: u64) -> Result<Sizes, PlanError> {
    let flows = &config.flows;
    let sizes = Sizes::with(flows.max.unwrap_or_else(|| default_max(flows.max_ipv6, memory_bytes)), flows.max_ipv6);
    if sizes.memory_bytes() <= memory_bytes / MOST_SHARE || (flows.max.is_none() && flows.max_ipv6.is_none()) {
        return Ok(sizes);
    }
    // What is set and takes the most is what has to become smaller.
    let ipv4 =
        flows.max.filter(|_| flows.max_ipv6.is_none() || sizes.flows_v4.memory_bytes >= sizes.flows_v6.memory_bytes);
    let (key, connections) = match ipv4 {
        Some(max) => ("flows.max", max),
        None => ("flows.max_ipv6", sizes.flows_v6.connections),
    };
    let fits = most_that_fits(memory_bytes / MOST_SHARE, |connections| match ipv4 {
        Some(_) => Sizes::with(connections, flows.max_ipv6),
        None => Sizes::with(sizes.flows_v4.connections, Some(connections)),
    });
    let (place, needed_bytes) = (config.origin.place(key), sizes.memory_bytes());
    Err(PlanError::FlowsTooLarge { place, key, connections, needed_bytes, memory_bytes, fits })
}

/// What to do about tables that are too large.
pub(super) fn remedy(fits: Option<u32>) -> String {
    match fits {
        Some(most) => format!("write at most \"{}\"", size_text(most.into())),
        None => "lower flows.max and flows.max_ipv6, or take a machine with more memory".to_owned(),
    }
}

/// The largest power of two between the bounds whose tables fit the share.
fn default_max(max_ipv6: Option<u32>, memory_bytes: u64) -> u32 {
    let (least, most) = DEFAULT_MAX;
    let mut max = most;
    while max > least && Sizes::with(max, max_ipv6).memory_bytes() > memory_bytes / DEFAULT_SHARE {
        max /= 2;
    }
    max
}

/// The largest number, in steps of 1,024, whose tables take no more than `bytes`.
fn most_that_fits(bytes: u64, sizes: impl Fn(u32) -> Sizes) -> Option<u32> {
    const STEP: u32 = 1 << 10;
    let fits = |steps: u32| sizes(steps * STEP).memory_bytes() <= bytes;
    let (mut least, mut over) = (0, CONNECTIONS.end() / STEP + 1);
    while over - least > 1 {
        let middle = least + (over - least) / 2;
        if fits(middle) {
            least = middle;
        } else {
            over = middle;
        }
    }
    (least > 0).then_some(least * STEP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const MIB: u64 = 1 << 20;

    fn sizes(text: &str, memory_bytes: u64) -> Result<Sizes, PlanError> {
        choose(&config::parse(text, "f.toml").unwrap(), memory_bytes)
    }

    fn connections(text: &str, memory_bytes: u64) -> (u32, u32) {
        let sizes = sizes(text, memory_bytes).unwrap();
        (sizes.flows_v4.connections, sizes.flows_v6.connections)
    }

    #[test]
    fn a_connection_costs_what_the_kernel_takes() {
        let sizes = Sizes::with(1 << 20, None);
        // 18 slots of 64 + 8 bytes for 7 entries, two entries a connection.
        assert_eq!(sizes.flows_v4.memory_bytes, ((2 << 20) * 18 / 7) * 72);
        assert_eq!(sizes.flows_v4.bytes_per_connection(), 371);
        assert_eq!(sizes.flows_v4.entries(), 2 << 20);
        assert_eq!((sizes.flows_v6.bytes_per_connection(), sizes.flows_v6.memory_bytes), (384, 96 * MIB));
        assert_eq!(sizes.memory_bytes(), sizes.flows_v4.memory_bytes + 96 * MIB);
    }

    #[test]
    fn the_default_follows_the_memory() {
        assert_eq!(connections("", 64 * MIB), (16 << 10, 4 << 10));
        assert_eq!(connections("", 512 * MIB), (128 << 10, 32 << 10));
        assert_eq!(connections("", 1024 * MIB), (256 << 10, 64 << 10));
        assert_eq!(connections("", 4096 * MIB), (1 << 20, 256 << 10));
        assert_eq!(connections("", 1 << 40), (1 << 20, 256 << 10));
        for mib in [128, 200, 512, 900, 1024, 2000, 2900] {
            let total = sizes("", mib * MIB).unwrap().memory_bytes();
            assert!((mib * MIB / 16..=mib * MIB / 8).contains(&total), "{total} of {mib} MiB");
        }
    }

    #[test]
    fn what_is_set_is_taken() {
        assert_eq!(connections("[flows]\nmax = \"64k\"", 512 * MIB), (64 << 10, 16 << 10));
        assert_eq!(connections("[flows]\nmax = \"1k\"", 512 * MIB), (1 << 10, 1 << 10));
        assert_eq!(connections("[flows]\nmax = 100000\nmax_ipv6 = \"2k\"", 512 * MIB), (100_000, 2048));
        assert_eq!(connections("[flows]\nmax_ipv6 = \"64k\"", 512 * MIB), (64 << 10, 64 << 10));
    }

    #[test]
    fn what_takes_more_than_half_of_the_memory_is_refused() {
        let refusal = |text, memory| sizes(text, memory).unwrap_err().to_string();
        assert_eq!(
            refusal("\n[flows]\nmax = \"4m\"", 2048 * MIB),
            "f.toml:3: flows.max = \"4m\": with it the flow tables take 1.8 GiB, more than half of this machine's 2.0 GiB; \
             write at most \"2248k\""
        );
        assert_eq!(
            refusal("[flows]\nmax = \"64k\"\nmax_ipv6 = \"1m\"", 512 * MIB),
            "f.toml:3: flows.max_ipv6 = \"1m\": with it the flow tables take 407.1 MiB, more than half of this machine's \
             512.0 MiB; write at most \"620k\""
        );
        assert_eq!(
            refusal("[flows]\nmax_ipv6 = \"1m\"", 512 * MIB),
            "f.toml:2: flows.max_ipv6 = \"1m\": with it the flow tables take 389.8 MiB, more than half of this machine's \
             512.0 MiB; write at most \"667k\""
        );
        assert_eq!(
            refusal("[flows]\nmax = \"1m\"\nmax_ipv6 = \"1m\"", 256 * MIB),
            "f.toml:3: flows.max_ipv6 = \"1m\": with it the flow tables take 754.3 MiB, more than half of this machine's \
             256.0 MiB; lower flows.max and flows.max_ipv6, or take a machine with more memory"
        );
        let written = |max: &str| sizes(&format!("[flows]\nmax = \"{max}\""), 2048 * MIB);
        assert!(written("2248k").is_ok() && written("2249k").is_err());
    }
}
