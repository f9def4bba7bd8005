//! The file that remembers what sysctls were before they were changed, so that they are restored even if the process
//! that changed them was killed. It is one JSON object, in a directory that does not survive a reboot (/run), as
//! sysctls do not.
//!
//! # Invariants
//! - A value is on disk before the host's is changed: `save` replaces the file as a whole and returns when it is
//!   durable.
//! - The value from before the first change is never overwritten by a later one.

use super::{HostError, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Path below /proc/sys/net.
    pub key: String,
    /// The interface that it belongs to; 0 for none. Another interface of the same name is another.
    pub ifindex: u32,
    /// What it was before us.
    pub from: String,
    /// What we set it to.
    pub to: String,
    /// Whether it was meant to be put back at once.
    pub momentary: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// Inode of the network namespace that the entries are about.
    namespace: u64,
    changes: Vec<Entry>,
}

/// The remembered changes, oldest first.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    namespace: u64,
    pub entries: Vec<Entry>,
}

impl Journal {
    /// Reads what an earlier process left; no file is an empty journal.
    pub fn open(path: &Path) -> Result<Self> {
        let own = Path::new("/proc/thread-self/ns/net");
        let namespace = std::fs::metadata(own).map_err(|error| HostError::file("examine", own, error))?.ino();
        let mut journal = Self { path: path.to_owned(), namespace, entries: Vec::new() };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(journal),
            Err(error) => return Err(HostError::file("read", path, error)),
        };
        let contents: Contents =
            serde_json::from_slice(&text).map_err(|source| HostError::Journal { path: path.to_owned(), source })?;
        if contents.namespace == namespace {
            journal.entries = contents.changes;
        } else {
            tracing::info!("forgot the sysctls in {}: they are another network namespace's", path.display());
        }
        Ok(journal)
    }

    /// Adds a change, or has an earlier one of the same sysctl lead to the new value.
    pub fn remember(&mut self, new: Entry) {
        match self.entries.iter_mut().find(|entry| entry.key == new.key) {
            Some(entry) if entry.ifindex == new.ifindex => {
                entry.to = new.to;
                entry.momentary &= new.momentary;
            }
            Some(entry) => *entry = new,
            None => self.entries.push(new),
        }
    }

    /// Makes the file hold the entries, durably; without entries there is no file.
    pub fn save(&self) -> Result<()> {
        if self.entries.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(HostError::file("remove", &self.path, error)),
                _ => Ok(()),
            };
        }
        let contents = Contents { namespace: self.namespace, changes: self.entries.clone() };
        let text = serde_json::to_vec_pretty(&contents).expect("numbers and strings always make JSON");
        self.replace(&text).map_err(|error| HostError::file("write", &self.path, error))
    }

    fn replace(&self, text: &[u8]) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        // The rename is durable when the directory is.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, ifindex: u32, from: &str, to: &str) -> Entry {
        Entry { key: key.into(), ifindex, from: from.into(), to: to.into(), momentary: false }
    }

    #[test]
    fn what_was_first_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sysctls.json");
        let mut journal = Journal::open(&path).unwrap();
        journal.remember(entry("a", 1, "0", "1"));
        journal.remember(entry("b", 2, "0", "1"));
        journal.remember(Entry { momentary: true, ..entry("a", 1, "1", "2") });
        journal.remember(entry("b", 3, "5", "6"));
        journal.save().unwrap();
        let mut again = Journal::open(&path).unwrap();
        assert_eq!(again.entries, [entry("a", 1, "0", "2"), entry("b", 3, "5", "6")]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        again.entries.clear();
        again.save().unwrap();
        again.save().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn another_namespaces_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sysctls.json");
        let mut journal = Journal::open(&path).unwrap();
        journal.namespace += 1;
        journal.remember(entry("a", 1, "0", "1"));
        journal.save().unwrap();
        assert_eq!(Journal::open(&path).unwrap().entries, []);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sysctls.json");
        for text in ["", "{}", "{\"namespace\":1,\"changes\":[{}]}", "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Journal::open(&path), Err(HostError::Journal { .. })), "{text}");
        }
    }
}
