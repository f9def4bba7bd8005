//! Those who follow records live, as `forwarder flow-logs tail` does. They cost nothing while there are none.
//!
//! Each has a filter and a queue of its own. The sweeper puts into the queue what the filter lets through and never waits: what
//! there is no room for is left out, and the next that there is room for says how much that was.

use crate::record::{Batch, Direction, Filter, Interfaces, Line, Window};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Records that go into a queue at once.
const CHUNK: usize = 256;
/// Chunks that may wait for a watcher: with those, some 3 MB.
const BEHIND: usize = 64;
/// Watchers at a time: each has its filter asked about every record.
const MOST: usize = 16;

/// Records for a watcher.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What the numbers mean.
    pub interfaces: Arc<Interfaces>,
    /// Windows, each with the interface and the direction that the record is about.
    pub records: Vec<(Window, u16, Direction)>,
    /// Records that were left out before these.
    pub left_out: u64,
}

/// The watchers.
#[derive(Debug, Default)]
pub struct Watchers(Mutex<Vec<Watcher>>);

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    queue: Sender<Seen>,
    left_out: u64,
}

impl Watchers {
    /// Begins to watch, until the receiver is dropped. `None`: too many do already.
    pub fn watch(&self, filter: Filter) -> Option<Receiver<Seen>> {
        let mut watchers = self.list();
        watchers.retain(|watcher| !watcher.queue.is_closed());
        if watchers.len() >= MOST {
            return None;
        }
        let (queue, seen) = channel(BEHIND);
        watchers.push(Watcher { filter, queue, left_out: 0 });
        Some(seen)
    }

    pub(super) fn is_watched(&self) -> bool {
        let mut watchers = self.list();
        watchers.retain(|watcher| !watcher.queue.is_closed());
        !watchers.is_empty()
    }

    pub(super) fn windows(&self, batch: &Batch) {
        self.list().iter_mut().for_each(|watcher| watcher.take(batch));
    }

    /// Ends all that is being watched.
    pub(super) fn end(&self) {
        self.list().clear();
    }

    fn list(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.lock().expect("no thread panics while it holds the watchers")
    }
}

impl Watcher {
    fn take(&mut self, batch: &Batch) {
        let names = &*batch.interfaces;
        let mut records = Vec::new();
        for window in &batch.windows {
            for (number, direction) in window.records() {
                let Some(interface) = names.at(number) else { continue };
                if self.filter.matches(&Line { window, direction, interface, names }) {
                    records.push((*window, number, direction));
                }
            }
            if records.len() >= CHUNK {
                self.put(std::mem::take(&mut records), &batch.interfaces);
            }
        }
        if !records.is_empty() {
            self.put(records, &batch.interfaces);
        }
    }

    fn put(&mut self, records: Vec<(Window, u16, Direction)>, interfaces: &Arc<Interfaces>) {
        let seen = Seen { interfaces: interfaces.clone(), records, left_out: self.left_out };
        match self.queue.try_send(seen) {
            Ok(()) => self.left_out = 0,
            Err(TrySendError::Full(seen)) => self.left_out += seen.records.len() as u64,
            // It has gone, and is forgotten with the next pass.
            Err(TrySendError::Closed(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Interface, NOWHERE};

    fn batch(windows: usize, packets: u64) -> Batch {
        let interfaces = Arc::new(Interfaces { list: vec![Interface::default(); 3], ..Interfaces::default() });
        let window = Window { ingress: 1, egress: NOWHERE, packets, ..Window::default() };
        Batch { interfaces, windows: vec![window; windows] }
    }

    #[test]
    fn a_watcher_sees_what_its_filter_lets_through() {
        let watchers = Watchers::default();
        assert!(!watchers.is_watched());
        let mut seen = watchers.watch("packets > 5".parse().expect("a filter")).expect("room");
        assert!(watchers.is_watched());
        watchers.windows(&batch(3, 5));
        watchers.windows(&batch(2, 6));
        let first = seen.try_recv().expect("records");
        assert_eq!((first.records.len(), first.left_out), (2, 0));
        drop(seen);
        assert!(!watchers.is_watched());
    }

    #[test]
    fn who_is_slow_misses_records_and_hears_how_many() {
        let watchers = Watchers::default();
        let mut seen = watchers.watch(Filter::All).expect("room");
        let all = (BEHIND + 10) * CHUNK + 7;
        watchers.windows(&batch(all, 1));
        let mut had = 0;
        while let Ok(chunk) = seen.try_recv() {
            assert_eq!(chunk.left_out, 0);
            had += chunk.records.len();
        }
        assert_eq!(had, BEHIND * CHUNK);
        watchers.windows(&batch(1, 1));
        assert_eq!(seen.try_recv().expect("a record").left_out, (all - had) as u64);
    }

    #[test]
    fn there_are_only_so_many() {
        let watchers = Watchers::default();
        let mut all: Vec<_> = (0..MOST).map(|_| watchers.watch(Filter::All).expect("room")).collect();
        assert!(watchers.watch(Filter::All).is_none());
        all.pop();
        assert!(watchers.watch(Filter::All).is_some());
    }
}
