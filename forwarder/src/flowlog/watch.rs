//! Those who follow flows live: `forwarder flow-logs tail` and `forwarder top`. They cost nothing while there are none, and one
//! that is too slow misses windows and hears of it.

use crate::record::Batch;
use std::sync::Arc;
use tokio::sync::broadcast::{Receiver, Sender, channel};

/// Batches that a watcher may be behind.
const BEHIND: usize = 512;

/// What a watcher sees.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Windows.
    Windows(Arc<Batch>),
    /// All windows of a second have been seen.
    Closed,
}

/// The watchers.
#[derive(Debug)]
pub struct Watchers(Sender<Seen>);

impl Default for Watchers {
    fn default() -> Self {
        Self(channel(BEHIND).0)
    }
}

impl Watchers {
    /// Begins to watch, until the receiver is dropped.
    pub fn watch(&self) -> Receiver<Seen> {
        self.0.subscribe()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(super) fn windows(&self, batch: Arc<Batch>) {
        // An error says that the last watcher has just gone.
        let _ = self.0.send(Seen::Windows(batch));
    }

    pub(super) fn close(&self) {
        let _ = self.0.send(Seen::Closed);
    }
}
