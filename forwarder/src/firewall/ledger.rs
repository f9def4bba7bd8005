//! Which rule has which counter. A rule that stays, by name or else by what it says, keeps its counter when the policy
//! changes and when the controller starts again.

use crate::plan::PlannedRule;
use forwarder_ebpf::abi::firewall::{COUNTER_OUTSIDE, MAX_RULE_COUNTERS};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

/// First counter that a rule can have; those below are the defaults'.
const FIRST: u16 = COUNTER_OUTSIDE + 1;

/// The counters of the rules, kept in a file.
#[derive(Debug, Default)]
pub struct Ledger {
    file: PathBuf,
    counters: BTreeMap<String, u16>,
}

/// Counters for a list of rules.
#[derive(Debug, PartialEq, Eq)]
pub struct Assigned {
    /// One for each rule, in order.
    pub counters: Vec<u16>,
    /// Those that had no rule before; they are to begin at zero.
    pub new: Vec<u16>,
}

impl Ledger {
    /// What an earlier controller wrote, if it is there and can be read; else all rules are new.
    pub fn open(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Self { file, counters: serde_json::from_str(&text).unwrap_or_default() }
    }

    /// Gives each rule its counter. Counters of rules that are gone are free for the next change, not for this one: until it
    /// is done they still count.
    pub fn assign(&mut self, rules: &[PlannedRule]) -> Assigned {
        let taken: BTreeSet<u16> = self.counters.values().copied().collect();
        let mut free = (FIRST..MAX_RULE_COUNTERS as u16).filter(|counter| !taken.contains(counter));
        let mut assigned = Assigned { counters: Vec::with_capacity(rules.len()), new: Vec::new() };
        let (mut next, mut seen) = (BTreeMap::new(), BTreeMap::<String, u32>::new());
        for rule in rules {
            let what =
                format!("{} {} {}", if rule.for_host { "host" } else { "rule" }, rule.identity, rule.action.name());
            let count = seen.entry(what.clone()).or_insert(0);
            *count += 1;
            let key = format!("{what} #{count}");
            let counter = self.counters.get(&key).copied().unwrap_or_else(|| {
                let counter = free.next().expect("there are twice as many counters as rules");
                assigned.new.push(counter);
                counter
            });
            next.insert(key, counter);
            assigned.counters.push(counter);
        }
        self.counters = next;
        assigned
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the file cannot be written; then a controller that starts again gives out the counters anew.
    pub fn save(&self) -> io::Result<()> {
        std::fs::write(&self.file, serde_json::to_vec(&self.counters)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    fn rule(identity: &str, action: Action) -> PlannedRule {
        PlannedRule {
            name: identity.to_owned(),
            identity: identity.to_owned(),
            text: String::new(),
            action,
            for_host: false,
            log: false,
        }
    }

    #[test]
    fn a_rule_that_stays_keeps_its_counter_wherever_it_moves() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path().join("rules.json"));
        let [a, b, c] = ["a", "b", "c"].map(|name| rule(name, Action::Allow));
        assert_eq!(
            ledger.assign(&[a.clone(), b.clone(), a.clone()]),
            Assigned { counters: vec![2, 3, 4], new: vec![2, 3, 4] }
        );
        ledger.save().unwrap();
        let mut again = Ledger::open(directory.path().join("rules.json"));
        assert_eq!(
            again.assign(&[c.clone(), b.clone(), a.clone()]),
            Assigned { counters: vec![5, 3, 2], new: vec![5] }
        );
        // What it does is part of what it is.
        assert_eq!(again.assign(&[rule("b", Action::Deny)]), Assigned { counters: vec![4], new: vec![4] });
        assert_eq!(again.assign(&[c, a]), Assigned { counters: vec![2, 3], new: vec![2, 3] });
    }
}
