//! Which rule has which counter. A rule that stays, by name or else by what it says, keeps its counter when the policy
//! changes and when the controller starts again.

use crate::plan::PlannedRule;
use forwarder_ebpf::abi::firewall::{COUNTER_OUTSIDE, MAX_RULE_COUNTERS};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

/// First counter that a rule can have; those below are the defaults'.
const FIRST: u16 = COUNTER_OUTSIDE + 1;

/// The counters of the rules, kept in a file.
#[derive(Debug, Default)]
pub struct Ledger {
    file: PathBuf,
    books: Books,
}

/// What the file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Books {
    /// The counter that was given out last.
    last: u16,
    /// By what a rule is known by.
    counters: BTreeMap<String, u16>,
}

/// Counters for a list of rules, which the ledger does not know of before [`Ledger::keep`].
#[derive(Debug)]
pub struct Assigned {
    /// One for each rule, in order.
    pub counters: Vec<u16>,
    /// Those that had no rule before; they are to begin at zero.
    pub new: Vec<u16>,
    books: Books,
}

impl Ledger {
    /// What an earlier controller wrote, if it is there and can be read; else all rules are new.
    pub fn open(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Self { file, books: serde_json::from_str(&text).unwrap_or_default() }
    }

    /// Gives each rule its counter. Counters of rules that are gone are free for the next change, not for this one, if others
    /// are left: until it is done they still count. `None`: there are more rules than counters.
    pub fn assign(&self, rules: &[PlannedRule]) -> Option<Assigned> {
        let keys = keys(rules);
        let Books { last, counters } = &self.books;
        let taken: BTreeSet<u16> = counters.values().copied().collect();
        let kept: BTreeSet<u16> = keys.iter().filter_map(|key| counters.get(key)).copied().collect();
        // Round and round: a number is another rule's only long after the rule that had it is gone, so that what flows
        // remember of it does not name the wrong one.
        let next = (last % MAX_RULE_COUNTERS as u16 + 1).max(FIRST);
        let all = (next..MAX_RULE_COUNTERS as u16).chain(FIRST..next);
        let unused = all.filter(|counter| !taken.contains(counter));
        let mut free = unused.chain(taken.difference(&kept).copied());
        let mut assigned = Assigned {
            counters: Vec::with_capacity(keys.len()),
            new: Vec::new(),
            books: Books { last: *last, ..Books::default() },
        };
        for key in keys {
            let counter = match counters.get(&key) {
                Some(counter) => *counter,
                None => {
                    let counter = free.next()?;
                    assigned.new.push(counter);
                    assigned.books.last = counter;
                    counter
                }
            };
            assigned.counters.push(counter);
            assigned.books.counters.insert(key, counter);
        }
        Some(assigned)
    }

    /// The rules are in force: remembers their counters.
    pub fn keep(&mut self, assigned: Assigned) {
        self.books = assigned.books;
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the file cannot be written; then a controller that starts again gives out the counters anew.
    pub fn save(&self) -> io::Result<()> {
        // Whole or not at all: whoever is killed here leaves the one before.
        let new = self.file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&self.books)?)?;
        std::fs::rename(&new, &self.file)
    }
}

/// What each rule is known by; of those that say the same, each by its turn.
fn keys(rules: &[PlannedRule]) -> Vec<String> {
    let mut seen = BTreeMap::<String, u32>::new();
    let key = |rule: &PlannedRule| {
        let of = if rule.for_host { "host" } else { "rule" };
        let what = format!("{of} {} {}", rule.identity, rule.action.name());
        let count = seen.entry(what.clone()).or_insert(0);
        *count += 1;
        format!("{what} #{count}")
    };
    rules.iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;
    use forwarder_ebpf::abi::firewall::MAX_RULES;

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
        assert_eq!(put(&mut ledger, &[a.clone(), b.clone(), a.clone()]), (vec![2, 3, 4], vec![2, 3, 4]));
        ledger.save().unwrap();
        let mut again = Ledger::open(directory.path().join("rules.json"));
        assert_eq!(put(&mut again, &[c.clone(), b.clone(), a.clone()]), (vec![5, 3, 2], vec![5]));
        // What it does is part of what it is.
        assert_eq!(put(&mut again, &[rule("b", Action::Deny)]), (vec![6], vec![6]));
        assert_eq!(put(&mut again, &[c, a]), (vec![7, 8], vec![7, 8]));
    }

    #[test]
    fn a_number_is_not_anothers_at_the_next_change_nor_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path().join("rules.json"));
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| rule(name, Action::Allow));
        put(&mut ledger, &[a.clone(), b]);
        put(&mut ledger, std::slice::from_ref(&a));
        assert_eq!(put(&mut ledger, &[a, c]), (vec![2, 4], vec![4]));
        put(&mut ledger, &[]);
        ledger.save().unwrap();
        assert_eq!(put(&mut Ledger::open(directory.path().join("rules.json")), &[d]), (vec![5], vec![5]));
    }

    /// Counters of rules that come into force, and which of them are new.
    fn put(ledger: &mut Ledger, rules: &[PlannedRule]) -> (Vec<u16>, Vec<u16>) {
        let assigned = ledger.assign(rules).expect("there are counters left");
        let (counters, new) = (assigned.counters.clone(), assigned.new.clone());
        ledger.keep(assigned);
        (counters, new)
    }

    #[test]
    fn as_many_rules_as_fit_can_be_exchanged_for_as_many_others() {
        let rules = |prefix: char, count| -> Vec<_> {
            (0..count).map(|at| rule(&format!("{prefix}{at}"), Action::Allow)).collect()
        };
        let mut ledger = Ledger::default();
        put(&mut ledger, &rules('a', MAX_RULES));
        let (counters, _) = put(&mut ledger, &rules('b', MAX_RULES));
        assert_eq!(counters.into_iter().collect::<BTreeSet<_>>().len(), MAX_RULES as usize);
        assert!(ledger.assign(&rules('c', MAX_RULE_COUNTERS)).is_none(), "more than there are counters");
    }

    #[test]
    fn rules_that_do_not_come_into_force_change_nothing() {
        let mut ledger = Ledger::default();
        let (a, b) = (rule("a", Action::Allow), rule("b", Action::Allow));
        put(&mut ledger, std::slice::from_ref(&a));
        assert!(ledger.assign(std::slice::from_ref(&b)).is_some());
        assert_eq!(put(&mut ledger, &[b, a]), (vec![3, 2], vec![3]));
    }
}
