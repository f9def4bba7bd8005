//! Other destinations from one pass on: it ends all windows into those there were, and the ledgers of intervals that are new
//! begin with the very counters that it read. What it read is logged by the old ones, what comes later by the new ones.

use super::{Books, Feed, Group, Out, ledgers};
use crate::flowlog::change::Change;
use crate::flowlog::destination::Destination;
use crate::flowlog::ledger::Ledger;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A destination and its interval.
type Timed = (Duration, Arc<Destination>);

/// What changes.
#[derive(Debug)]
pub struct Regroup {
    /// Who wants windows from then on, by interval.
    groups: Vec<(Duration, Vec<Arc<Destination>>)>,
    /// Intervals that nobody had.
    joining: Vec<Group>,
    changes: Vec<(Arc<Destination>, Change)>,
}

impl Regroup {
    /// From those `before` to those `after`, some of which are to become something else.
    ///
    /// # Errors
    /// When a ledger cannot be opened.
    pub fn open(
        directory: &Path,
        before: &[Timed],
        after: Vec<Timed>,
        changes: Vec<(Arc<Destination>, Change)>,
    ) -> io::Result<Self> {
        let groups = by_interval(after);
        let is_new = |interval: &Duration| before.iter().all(|(other, _)| other != interval);
        let mut joining = Vec::new();
        for (interval, list) in groups.iter().filter(|(interval, _)| is_new(interval)) {
            let out = Out::Destinations(list.clone());
            let group = Group::open(ledgers(directory, *interval), *interval, out, Books::Fresh)?;
            joining.push(Group { joins: true, ..group });
        }
        Ok(Self { groups, joining, changes })
    }
}

/// In the order in which intervals are first named.
pub(super) fn by_interval(destinations: Vec<Timed>) -> Vec<(Duration, Vec<Arc<Destination>>)> {
    let mut by_interval: Vec<(Duration, Vec<Arc<Destination>>)> = Vec::new();
    for (interval, destination) in destinations {
        match by_interval.iter_mut().find(|(other, _)| *other == interval) {
            Some((_, list)) => list.push(destination),
            None => by_interval.push((interval, vec![destination])),
        }
    }
    by_interval
}

impl Feed {
    /// With the next pass that sees every entry.
    pub fn change(&mut self, regroup: Regroup) {
        self.next = Some(regroup);
    }

    /// Whether that has not been made yet.
    pub fn is_changing(&self) -> bool {
        self.next.is_some()
    }

    /// Whether this pass is one that changes something: groups that are new then adopt what it reads.
    pub(super) fn join(&mut self) -> bool {
        if let Some(next) = &mut self.next {
            self.groups.append(&mut next.joining);
        }
        self.next.is_some()
    }

    /// All windows have ended and are in the queues: what comes next is the new ones'.
    pub(super) fn regroup(&mut self) {
        let Some(Regroup { mut groups, changes, .. }) = self.next.take() else { return };
        changes.into_iter().for_each(|(destination, change)| destination.change(change));
        self.groups.retain_mut(|group| {
            if matches!(group.out, Out::Watchers(_)) {
                return true;
            }
            let at = groups.iter().position(|(interval, _)| *interval == group.interval);
            match at {
                Some(at) => group.out = Out::Destinations(groups.swap_remove(at).1),
                None => group.forget(),
            }
            at.is_some()
        });
    }
}

impl Group {
    /// The first whole pass is over: what there was is in the ledgers.
    pub(super) fn settle(&mut self) {
        self.joins = false;
        for (path, adopts) in self.paths.iter().zip(&mut self.adopts) {
            if std::mem::take(adopts)
                && let Err(error) = Ledger::settle(path)
            {
                // Only a controller that is killed leaves a gap then, and its successor says so.
                tracing::error!(error = crate::error::one_line(&error), "cannot keep the ledger of flow logs");
            }
        }
    }

    /// Nobody subtracts here any more, and what is in the files grows old.
    fn forget(&self) {
        for path in &self.paths {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::error!(error = crate::error::one_line(&error), "cannot remove a ledger of flow logs");
            }
        }
    }
}
