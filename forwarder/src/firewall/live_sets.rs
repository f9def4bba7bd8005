//! Changes of sets that are made while everything runs. They stay through reloads and through a controller that is killed,
//! until the set's own text in the configuration changes: what was said last counts. They end with forwarding.
//!
//! A change is kept as what it adds to the configured set and what it takes away. So it is small when the change is, however
//! large the set.

use super::ranges::Addresses;
use crate::config::{Set, parse_set};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// Sets as configured, and how they have been changed since.
#[derive(Clone, Debug, Default)]
pub struct LiveSets {
    file: PathBuf,
    /// As configured.
    configured: BTreeMap<String, Addresses>,
    changes: BTreeMap<String, Change>,
}

/// How a set differs from the configured one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// Of the configured set that it is a change of.
    fingerprint: u64,
    added: Addresses,
    removed: Addresses,
}

/// The same in the file.
#[derive(Serialize, Deserialize)]
struct Written {
    fingerprint: u64,
    added: String,
    removed: String,
}

/// Ranges that a set has more, and ranges that it has less than the configured one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// More.
    pub added: usize,
    /// Less.
    pub removed: usize,
}

impl LiveSets {
    /// What an earlier controller wrote, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be read; says what is lost with it.
    pub fn open(file: PathBuf) -> (Self, Option<String>) {
        let (changes, problem) = match std::fs::read_to_string(&file) {
            Ok(text) => match parse(&text) {
                Ok(changes) => (changes, None),
                Err(problem) => (BTreeMap::new(), Some(problem)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (BTreeMap::new(), None),
            Err(error) => (BTreeMap::new(), Some(error.to_string())),
        };
        let said = problem.map(|problem| format!("live changes of sets are lost: {}: {problem}", file.display()));
        (Self { file, configured: BTreeMap::new(), changes }, said)
    }

    /// Takes over the sets of a configuration, and changes them as they were changed. What is said of it is for the operator.
    pub fn apply(&mut self, sets: &mut [Set]) -> Vec<String> {
        let mut notices = Vec::new();
        self.configured = sets.iter().map(|set| (set.name.clone(), set.addresses.clone())).collect();
        let mut changes = std::mem::take(&mut self.changes);
        for set in sets {
            let Some(change) = changes.remove(&set.name) else { continue };
            let (added, removed) = (change.added.ranges(), change.removed.ranges());
            if change.fingerprint == fingerprint(&set.addresses) {
                notices
                    .push(format!("set {} keeps its live changes: {added} ranges added, {removed} removed", set.name));
                set.addresses = change.on(&set.addresses);
                self.changes.insert(set.name.clone(), change);
            } else {
                notices.push(format!(
                    "set {} is configured otherwise now: its live changes are gone ({added} ranges added, {removed} removed)",
                    set.name
                ));
            }
        }
        notices.extend(
            changes.into_keys().map(|name| format!("there is no set {name} any more: its live changes are gone")),
        );
        notices
    }

    /// The set as configured.
    pub fn configured(&self, name: &str) -> Addresses {
        self.configured.get(name).cloned().unwrap_or_default()
    }

    /// A set is `now` like this.
    pub fn note(&mut self, name: &str, now: &Addresses) {
        let base = self.configured(name);
        let (added, removed) = (now.without(&base), base.without(now));
        if added.is_empty() && removed.is_empty() {
            self.changes.remove(name);
        } else {
            self.changes.insert(name.to_owned(), Change { fingerprint: fingerprint(&base), added, removed });
        }
    }

    /// How the sets differ from the configured ones; those that do not are not in it.
    pub fn differences(&self) -> BTreeMap<String, Difference> {
        let of = |change: &Change| Difference { added: change.added.ranges(), removed: change.removed.ranges() };
        self.changes.iter().map(|(name, change)| (name.clone(), of(change))).collect()
    }

    /// Writes the changes down, for the controller after this one.
    ///
    /// # Errors
    /// When the file cannot be written; the one before stays then.
    pub fn save(&self) -> io::Result<()> {
        let written = |change: &Change| Written {
            fingerprint: change.fingerprint,
            added: change.added.to_string(),
            removed: change.removed.to_string(),
        };
        let all: BTreeMap<_, _> = self.changes.iter().map(|(name, change)| (name, written(change))).collect();
        // In one step: a controller may be killed at any point.
        let new = self.file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&all)?)?;
        std::fs::rename(new, &self.file)
    }
}

impl Change {
    fn on(&self, base: &Addresses) -> Addresses {
        Addresses::union([base, &self.added].into_iter()).without(&self.removed)
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Change>, String> {
    let written: BTreeMap<String, Written> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let addresses = |text: &str| parse_set(text).map_err(|error| error.to_string());
    let read = |(name, Written { fingerprint, added, removed })| {
        Ok((name, Change { fingerprint, added: addresses(&added)?, removed: addresses(&removed)? }))
    };
    written.into_iter().map(read).collect()
}

/// Tells sets apart; the same in every version (FNV-1a, 64 bits, of the ranges' ends).
fn fingerprint(addresses: &Addresses) -> u64 {
    let ends = |ranges: &super::ranges::Ranges| -> Vec<u128> {
        ranges.as_slice().iter().flat_map(|(first, last)| [*first, *last]).collect()
    };
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let of = |hash: u64, ranges| {
        let ends: Vec<u128> = ends(ranges);
        let bytes = ends.iter().flat_map(|end| end.to_be_bytes()).chain([1]);
        bytes.fold(hash, step)
    };
    of(of(0xcbf2_9ce4_8422_2325, &addresses.v4), &addresses.v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, text: &str) -> Set {
        Set { name: name.to_owned(), addresses: parse_set(text).unwrap(), file: None }
    }

    fn texts(sets: &[Set]) -> Vec<String> {
        sets.iter().map(|set| set.addresses.to_string().replace('\n', " ").trim().to_owned()).collect()
    }

    #[test]
    fn a_change_stays_until_the_set_is_configured_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sets.json");
        let configured = || [set("a", "10.0.0.0/24\n2001:db8::/32"), set("b", "10.1.0.0/16"), set("c", "")];
        let mut live = LiveSets::open(file.clone()).0;
        assert!(live.apply(&mut configured()).is_empty());
        live.note("a", &parse_set("10.0.0.0/25\n192.0.2.1\n2001:db8::/32").unwrap());
        live.note("b", &parse_set("10.2.0.0/16").unwrap());
        live.note("c", &parse_set("").unwrap());
        live.save().unwrap();

        // A controller that was killed, and a reload.
        let (mut again, problem) = LiveSets::open(file.clone());
        assert_eq!(problem, None);
        for _ in 0..2 {
            let mut sets = configured();
            assert_eq!(again.apply(&mut sets).len(), 2);
            assert_eq!(texts(&sets), ["10.0.0.0/25 192.0.2.1 2001:db8::/32", "10.2.0.0/16", ""]);
        }
        let one = Difference { added: 1, removed: 1 };
        assert_eq!(again.differences(), BTreeMap::from([("a".to_owned(), one), ("b".to_owned(), one)]));

        let mut other = [set("a", "10.0.0.0/23\n2001:db8::/32"), set("b", "10.1.0.0/16")];
        let notices = again.apply(&mut other);
        assert!(notices[0].contains("set a is configured otherwise") && notices[1].contains("keeps"), "{notices:?}");
        assert_eq!(texts(&other), ["10.0.0.0/23 2001:db8::/32", "10.2.0.0/16"]);
        again.note("b", &again.configured("b"));
        assert!(again.differences().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sets.json");
        std::fs::write(&file, "{\"a\": {\"fingerprint\": 1, \"added\": \"nonsense\", \"removed\": \"\"}}").unwrap();
        let (live, problem) = LiveSets::open(file);
        assert!(problem.is_some_and(|problem| problem.contains("nonsense")) && live.differences().is_empty());
    }
}
