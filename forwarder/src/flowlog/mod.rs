//! Flow logs: the flow table's counters become records as AWS writes them for a network interface, and more.
//!
//! ```text
//! sweeper --> feed --> ledger           what has been logged of each entry: windows are subtractions
//!              |  '--> watch            who follows live: `flow-logs tail`
//!              '--> destination ------> text --> file, stdout
//!                    a thread, bounded   |  '--> s3 ---------.
//!                    queue, SKIPDATA     |--> cloudwatch ----+--> spool --> aws
//!                                        '--> ipfix
//! ```
//!
//! # Invariants
//! - Every packet that an entry counted is in exactly one record of each destination, or a counter and a SKIPDATA record say
//!   that it may not be.
//! - The ledger is on disk before what was taken from it is handed on; a destination's `progress` says what was on its way.
//! - Nothing grows without bound: queues, refused tuples, spools and rotated files have their limits.

pub mod append;
#[cfg(feature = "aws")]
mod aws;
pub mod change;
pub mod clock;
#[cfg(feature = "aws")]
mod cloudwatch;
#[cfg(feature = "aws")]
mod columns;
pub mod destination;
pub mod feed;
pub mod file;
pub mod identity;
pub mod ipfix;
pub mod ledger;
mod open;
pub mod progress;
pub mod refused;
#[cfg(feature = "aws")]
mod s3;
#[cfg(feature = "aws")]
mod spool;
pub mod text;
pub mod watch;

use crate::config;
use destination::{Destination, DestinationStatus};
use feed::Feed;
use identity::Identity;
use open::Wanted;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use watch::Watchers;

/// Why flow logs cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum FlowLogError {
    /// A destination cannot be opened.
    #[error("cannot open the flow log destination {name}")]
    Destination {
        /// Which.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The books cannot be opened.
    #[error("cannot keep the books of flow logs in {}", directory.display())]
    Ledger {
        /// Where.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The change before this one has not been made yet.
    #[error("flow logs are still being changed; try again in a few seconds")]
    Changing,
}

/// Flow logs of a running instance, for all but the sweeper.
#[derive(Debug)]
pub struct FlowLogs {
    identity: Arc<Identity>,
    instance: String,
    directory: PathBuf,
    /// As configured, and at work.
    destinations: Mutex<Vec<(config::Destination, Arc<Destination>)>>,
    /// Not wanted any more, and perhaps not at their end yet.
    leaving: Mutex<Vec<Arc<Destination>>>,
    /// Had by who changes them.
    turn: Arc<()>,
    watchers: Arc<Watchers>,
}

/// Where an instance keeps things, and what it found there.
#[derive(Clone, Copy, Debug)]
pub struct Home<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Its directory, gone with the datapath.
    pub directory: &'a Path,
    /// The flow tables were there before this controller.
    pub adopted: bool,
}

impl FlowLogs {
    /// Opens all destinations; the feed is the sweeper's.
    ///
    /// # Errors
    /// When a destination or a ledger cannot be opened.
    pub fn open(config: &config::FlowLogs, home: Home<'_>) -> Result<(Self, Feed), FlowLogError> {
        let ledger = |source| FlowLogError::Ledger { directory: home.directory.to_owned(), source };
        let intervals: Vec<_> = config.destinations.iter().map(|destination| destination.interval).collect();
        forget_ledgers(home.directory, if home.adopted { &intervals } else { &[] }).map_err(ledger)?;
        let (identity, watchers) = (Arc::new(Identity::new(config.clone())), Arc::<Watchers>::default());
        let mut destinations = Vec::new();
        for destination in &config.destinations {
            let name = name(&destination.kind);
            let wanted = Wanted { config: destination, name: &name, home, identity: &identity };
            let opened = wanted.destination().map_err(|source| FlowLogError::Destination { name, source })?;
            destinations.push((destination.clone(), Arc::new(opened)));
        }
        let by_interval =
            destinations.iter().map(|(config, destination)| (config.interval, destination.clone())).collect();
        let feed = Feed::open(home.directory, by_interval, watchers.clone(), home.adopted).map_err(ledger)?;
        let (instance, directory) = (home.instance.to_owned(), home.directory.to_owned());
        let (destinations, leaving) = (Mutex::new(destinations), Mutex::default());
        let turn = Arc::default();
        Ok((Self { identity, instance, directory, destinations, leaving, turn, watchers }, feed))
    }

    fn home(&self) -> Home<'_> {
        Home { instance: &self.instance, directory: &self.directory, adopted: true }
    }

    fn destinations(&self) -> MutexGuard<'_, Vec<(config::Destination, Arc<Destination>)>> {
        self.destinations.lock().expect("no thread panics while it holds the destinations")
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<Arc<Destination>>> {
        self.leaving.lock().expect("no thread panics while it holds those that leave")
    }

    /// What records call things.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What has become of the records of each destination.
    pub fn status(&self) -> Vec<DestinationStatus> {
        self.destinations().iter().map(|(_, destination)| destination.status()).collect()
    }

    /// Who follows live.
    pub fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// After the feed's last pass: writes what is on its way, and ends the threads.
    pub fn finish(&self, patience: Duration) {
        self.watchers.end();
        // A change that the last pass has made, and that is to be noted in this moment: what it has added ends as well.
        let deadline = Instant::now() + patience;
        while Arc::strong_count(&self.turn) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut all: Vec<_> = self.destinations().iter().map(|(_, destination)| destination.clone()).collect();
        all.append(&mut self.leaving());
        // All at once: each may have to wait for a service that is not there.
        all.iter().for_each(|destination| destination.begin_to_finish());
        all.iter().for_each(|destination| destination.finish(patience));
    }
}

/// A destination, as people call it.
fn name(kind: &config::DestinationKind) -> String {
    use config::DestinationKind as Kind;
    match kind {
        Kind::File { path, .. } => format!("file {}", path.display()),
        Kind::Stdout => "stdout".to_owned(),
        Kind::Ipfix { collector } => format!("ipfix {collector}"),
        Kind::CloudWatch { log_group, .. } => format!("cloudwatch-logs {log_group}"),
        Kind::S3 { bucket, prefix, .. } if prefix.is_empty() => format!("s3 {bucket}"),
        Kind::S3 { bucket, prefix, .. } => format!("s3 {bucket}/{prefix}"),
    }
}

/// A name for files, the same in every version of the controller: FNV-1a (RFC 9923), because the standard library's hasher may
/// change with the compiler.
fn code(of: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", of.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}

/// Of another flow table than the one there is, or of intervals that nobody has: what was counted since is in no ledger but
/// those that are kept.
fn forget_ledgers(directory: &Path, keep: &[Duration]) -> io::Result<()> {
    let keep: Vec<_> = keep.iter().flat_map(|interval| feed::ledgers(directory, *interval)).collect();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(feed::LEDGER) && !keep.contains(&path) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_files_never_change() {
        // Test vectors of RFC 9923.
        assert_eq!((super::code(""), super::code("a")), ("cbf29ce484222325".to_owned(), "af63dc4c8601ec8c".to_owned()));
    }
}
