//! The host that the forwarder runs on: what is there, what changes, what forwarding needs changed, and how the host
//! gets it back.
//!
//! | module | owns |
//! | --- | --- |
//! | `netlink` | questions to the kernel: links, addresses, default routes, neighbours; starting neighbour resolution |
//! | `events` | the multicast socket: a storm of changes becomes few events |
//! | `neighbour` | the cache of neighbours and what counts as a change of one |
//! | `sysctl`, `journal` | sysctls that forwarding needs, and the file that remembers what they were |
//! | `ports` | ports that the host itself uses |
//! | `lock` | one forwarder in a network namespace |
//! | `kernel`, `bpffs`, `memory` | what a datapath needs: root, a kernel, a place for pins, memory |
//! | `notify` | words to systemd |
//!
//! Nothing here knows the config, the datapath or AWS; what the facts mean is `crate::plan`'s.
//!
//! # Invariants
//! - Everything is about the network namespace of the thread that calls (of the one that called `Netlink::open`).
//! - Nothing on the host is changed without the old value being on disk first; see `sysctl`.

mod bpffs;
mod events;
mod journal;
mod kernel;
mod lock;
mod memory;
mod neighbour;
mod netlink;
mod notify;
mod ports;
mod route;
mod sysctl;
#[cfg(test)]
mod testing;

pub use bpffs::Bpffs;
pub use events::HostEvent;
pub use kernel::{require_kernel, require_root};
pub use lock::Lock;
pub use memory::memory_bytes;
pub use neighbour::{Neighbour, NeighbourState};
pub use netlink::Netlink;
pub use notify::{notify_ready, notify_status, notify_stopping};
pub use ports::{PortSet, local_port_range};
pub use route::interface_towards;
pub use sysctl::HostChanges;

use std::io;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, HostError>;

/// What the host refused or lacks. Each text says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Not the superuser.
    #[error("forwarder needs root: run it with sudo or as a systemd service")]
    NotRoot,
    /// The kernel lacks what the datapath is made of.
    #[error("kernel {found} is too old: forwarder needs 5.18 or later, and is tested from 6.1; boot a newer kernel")]
    KernelTooOld {
        /// Its release.
        found: String,
    },
    /// The kernel does not describe its types.
    #[error(
        "there is no /sys/kernel/btf/vmlinux: boot a kernel built with CONFIG_DEBUG_INFO_BTF, as distributions' are"
    )]
    NoBtf,
    /// Another instance serves this network namespace.
    #[error(
        "another forwarder{} runs in this network namespace: stop it first, with `systemctl stop forwarder` or SIGTERM",
        process.map(|process| format!(" (process {process})")).unwrap_or_default()
    )]
    AlreadyRuns {
        /// Its process id, if it can be told.
        process: Option<i32>,
    },
    /// The lock cannot be taken for another reason than that it is held.
    #[error("cannot take the lock of this network namespace")]
    Lock(#[source] io::Error),
    /// A file cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel says something unexpected.
    #[error("cannot make sense of {}: `{text}`", path.display())]
    Unexpected {
        /// Which file.
        path: PathBuf,
        /// What stands there.
        text: String,
    },
    /// The file of remembered sysctls is damaged.
    #[error("{} is damaged: set the host's sysctls as they should be, then remove the file", path.display())]
    Journal {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Not a name that an interface can have.
    #[error("`{0}` cannot be the name of an interface: 1 to 15 bytes without `/`, `:` and white space")]
    InterfaceName(String),
    /// A netlink socket cannot be made.
    #[error("cannot open a netlink socket")]
    NetlinkSocket(#[source] io::Error),
    /// The kernel refused a question or an order, or answered what nobody understands.
    #[error("cannot {action} over netlink")]
    Netlink {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl HostError {
    fn file(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File { action, path: path.to_owned(), source: source.into() }
    }
}
