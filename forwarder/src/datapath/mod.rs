//! The datapath in the kernel, as the rest of the controller sees it: loaded, attached, its maps with types.
//!
//! The only module that names aya, and the only one of this crate with `unsafe` (`sys`, `mapping`, `packet_socket`, `watch`).
//!
//! ```text
//! /sys/fs/bpf/<instance>/abi-<n>/MAP        the maps; shared by everything of the same layout
//! /sys/fs/bpf/<instance>/<mode>-<ifindex>   one link per interface: as long as the file is there, packets flow
//! ```
//!
//! # Invariants
//! - Programs are replaced in their links, never detached: on ENA a detach resets the device.
//! - Everything here takes `&self` and is one system call per element, so that any thread may use it at any time.
//! - A `Datapath` that is dropped changes nothing: `remove` is what ends forwarding.

mod attach;
mod fib;
mod fill;
mod firewall;
mod flow_table;
mod held;
mod load;
mod mapping;
mod packet_socket;
mod refused;
mod ring;
mod rule_log;
mod run;
mod sys;
mod table;
mod watch;

pub use attach::Mode;
pub use fib::Routed;
pub use fill::Filler;
pub use flow_table::{FlowTable, Key, Seen, wait_for_programs};
pub use held::{Held, HeldFrames};
pub use load::{LoadOptions, maps_directory};
pub use packet_socket::PacketSocket;
pub use refused::RefusedTables;
pub use rule_log::RuleEvents;
pub use run::{Action, Ran};
pub use table::{Element, PerCpu, Table, Value};
pub use watch::watch;

use aya::Ebpf;
use forwarder_ebpf::abi::firewall::{RuleCounter, RuleLogBudget, SourceCell, Unanswered};
use forwarder_ebpf::abi::{
    Control, Counter, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6, IfaceConfig,
    MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatRule, OUTCOMES,
};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;
use zerocopy::{FromBytes, IntoBytes};

type Result<T> = std::result::Result<T, DatapathError>;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Loading the object failed before the verifier saw it.
    #[error("cannot load the datapath into the kernel")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The verifier, or the kernel for another reason, refused a program.
    #[error("the kernel refuses the datapath's program `{program}`")]
    Program {
        /// Name in the object.
        program: &'static str,
        /// What it says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object has no such map or program: it is not the one this binary was built with.
    #[error("the datapath has no `{0}`: the binary is damaged, install it again")]
    Missing(&'static str),
    /// A system call on a map failed.
    #[error("cannot {action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Which map.
        map: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A pinned map is of another layout.
    #[error(
        "map {name} has keys of {key_size} and values of {value_size} bytes, which this version does not know: \
         another version's datapath runs; stop it first"
    )]
    Layout {
        /// Which map.
        name: &'static str,
        /// Bytes.
        key_size: u32,
        /// Bytes.
        value_size: u32,
    },
    /// A file among the pins cannot be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// XDP cannot be attached to an interface.
    #[error("cannot attach XDP to {interface}{hint}")]
    Attach {
        /// Which interface.
        interface: String,
        /// What to do about it.
        hint: String,
        /// What the kernel says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// XDP cannot be detached from an interface.
    #[error("cannot detach XDP")]
    Detach(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A program could not be run on a frame of our own.
    #[error("cannot run the datapath on a frame")]
    Run(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A frame could not be sent.
    #[error("cannot send a frame")]
    Send(#[source] io::Error),
    /// The system has no random numbers for the flow table's secret.
    #[error("cannot get random numbers from the system")]
    Random,
    /// No memory for a batch of elements.
    #[error("out of memory")]
    Memory,
}

impl DatapathError {
    fn map(action: &'static str, map: &'static str, source: io::Error) -> Self {
        Self::Map { action, map, source }
    }
}

/// `struct bpf_devmap_val` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes)]
struct Device {
    ifindex: u32,
    /// Descriptor of a program for the egress side; 0: none.
    program: u32,
}

/// The loaded datapath.
#[derive(Debug)]
pub struct Datapath {
    programs: Mutex<Ebpf>,
    /// The array of stages, held open.
    _stages: OwnedFd,
    links: Mutex<BTreeMap<u32, attach::Attached>>,
    pins: Option<PathBuf>,
    adopted: bool,
    /// IPv4 flows.
    pub flows4: FlowTable<FlowKey4>,
    /// IPv6 flows.
    pub flows6: FlowTable<FlowKey6>,
    /// IPv4 fragment trains.
    pub fragments4: Table<FragmentKey4, FragmentOwner4>,
    /// IPv6 fragment trains.
    pub fragments6: Table<FragmentKey6, FragmentOwner6>,
    ifaces: Table<u32, IfaceConfig>,
    control: Table<u32, Control>,
    nat_rules: Table<u32, NatRule>,
    nat_addresses: Table<u32, [u8; 4]>,
    host_ports: Table<u32, u64>,
    devices: Table<u32, Device>,
    /// Packets that were refused.
    pub refused: RefusedTables,
    counters: PerCpu<Counter>,
    dwell: PerCpu<u64>,
    policy: OwnedFd,
    unanswered: Table<u32, Unanswered>,
    sources: Table<u32, SourceCell>,
    sources_past: OwnedFd,
    rule_counters: PerCpu<RuleCounter>,
    rule_log_budget: PerCpu<RuleLogBudget>,
}

impl Datapath {
    /// Whether the maps were there already: an earlier controller's, with its flows and counters.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// The switches, as last written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_control(&self) -> Result<Control> {
        Ok(self.control.read(&0)?.unwrap_or_default())
    }

    /// Writes the switches. The datapath may see the fields change one after the other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_control(&self, control: &Control) -> Result<()> {
        self.control.write(&0, control)
    }

    /// Interface indexes below this can be served.
    pub fn max_ifindex(&self) -> u32 {
        self.ifaces.max_entries()
    }

    /// Has an interface served as `config` says, and its slot lead to it.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn write_iface(&self, ifindex: u32, config: &IfaceConfig) -> Result<()> {
        self.devices.write(&u32::from(config.slot), &Device { ifindex, program: 0 })?;
        self.ifaces.write(&ifindex, config)
    }

    /// Has an interface served no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_iface(&self, ifindex: u32) -> Result<()> {
        self.ifaces.write(&ifindex, &IfaceConfig::default())
    }

    /// How an interface is served; `None` when it is not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_iface(&self, ifindex: u32) -> Result<Option<IfaceConfig>> {
        Ok(self.ifaces.read(&ifindex)?.filter(|config| config.side != 0))
    }

    /// Every interface that is served, by index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_ifaces(&self) -> Result<Vec<(u32, IfaceConfig)>> {
        let mut served = Vec::new();
        self.ifaces.visit(|ifindex, config| {
            if config.side != 0 {
                served.push((*ifindex, *config));
            }
            Ok(())
        })?;
        Ok(served)
    }

    /// Fills a bank of source NAT. It counts once `Control::nat_bank` names it.
    ///
    /// The rest of the bank never matches, so that a packet that sees the old number of rules with the new bank finds
    /// nothing there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_nat(&self, bank: u32, rules: &[NatRule], addresses: &[[u8; 4]]) -> Result<()> {
        let never = NatRule { from: [255; 4], ..NatRule::default() };
        for index in 0..MAX_NAT_RULES {
            let rule = rules.get(index as usize).unwrap_or(&never);
            self.nat_rules.write(&(bank * MAX_NAT_RULES + index), rule)?;
        }
        for (index, address) in (0..MAX_NAT_ADDRESSES).zip(addresses) {
            self.nat_addresses.write(&(bank * MAX_NAT_ADDRESSES + index), address)?;
        }
        Ok(())
    }

    /// A bank of source NAT as it was written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_nat(&self, bank: u32) -> Result<(Vec<NatRule>, Vec<[u8; 4]>)> {
        let rules =
            (0..MAX_NAT_RULES).map(|at| Ok(self.nat_rules.read(&(bank * MAX_NAT_RULES + at))?.unwrap_or_default()));
        let address = |at| Ok(self.nat_addresses.read(&(bank * MAX_NAT_ADDRESSES + at))?.unwrap_or_default());
        Ok((rules.collect::<Result<_>>()?, (0..MAX_NAT_ADDRESSES).map(address).collect::<Result<_>>()?))
    }

    /// Names the ports that source NAT must leave to the host, 64 a word.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_host_ports(&self, ports: &[u64; 1024]) -> Result<()> {
        for (word, bits) in (0..).zip(ports) {
            self.host_ports.write(&word, bits)?;
        }
        Ok(())
    }

    /// Counters of the first `slots` slots, summed over all CPUs; see `abi::counter_index`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_counters(&self, slots: u32) -> Result<Vec<Counter>> {
        self.counters.read_folded((slots * OUTCOMES) as usize, |sum, counter| {
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        })
    }

    /// Histogram of sampled processing times, summed over all CPUs; see `abi::dwell_bucket_ns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_dwell(&self) -> Result<Vec<u64>> {
        self.dwell.read_folded(forwarder_ebpf::abi::DWELL_BUCKETS as usize, |sum, count| *sum += count)
    }

    /// Sets all counters to zero.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear_counters(&self) -> Result<()> {
        self.counters.clear()?;
        self.dwell.clear()
    }
}
