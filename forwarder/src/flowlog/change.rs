//! Another `[flow_logs]` while forwarding goes on: opened beside what there is, and exchanged for it at the end of a window.
//!
//! ```text
//! prepare: opens what is new, refuses what cannot be opened; nothing has changed yet
//! Regroup -> sweeper: one pass ends all windows into the old destinations, and from the same counters on the new ones begin
//! commit:  names, status; what is not wanted any more is drained, for as long as at a stop, and ended
//! ```
//!
//! A destination is recognised by its place: there it keeps its file, stream or spool, whatever else about it changes.

use super::destination::{Destination, Sink};
use super::feed::Regroup;
use super::open::Wanted;
use super::{FlowLogError, FlowLogs, Home, name};
use crate::config;
use crate::record::{Batch, Filter, Interfaces, Record};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long one that is not wanted any more may take to write what it has.
const LAST_RECORDS: Duration = Duration::from_secs(15);

/// Opens a sink; again when it could not be.
pub type Opener = Box<dyn FnMut() -> io::Result<Box<dyn Sink>> + Send>;

/// What a running destination is to become.
#[derive(Debug)]
pub struct Change {
    /// What it wants.
    pub filter: Filter,
    /// Another sink in the same place; `None`: it stays.
    pub sink: Option<Reopened>,
}

impl Change {
    /// With one before it that has not been made.
    #[must_use]
    pub fn after(self, before: Option<Self>) -> Self {
        let sink = match (before.and_then(|before| before.sink), self.sink) {
            (Some(before), Some(sink)) => Some(Reopened { goes_on: before.goes_on && sink.goes_on, ..sink }),
            (before, sink) => sink.or(before),
        };
        Self { sink, ..self }
    }
}

/// A sink that opens with its first use, and tries again with every other.
pub struct Reopened {
    open: Opener,
    sink: Option<Box<dyn Sink>>,
    goes_on: bool,
}

impl std::fmt::Debug for Reopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reopened").field("is_open", &self.sink.is_some()).finish_non_exhaustive()
    }
}

impl Reopened {
    /// Through this; `goes_on`: with what the one before it has left in its place.
    pub fn new(open: Opener, goes_on: bool) -> Self {
        Self { open, sink: None, goes_on }
    }

    /// Whether the one before it may leave to it what waits.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn sink(&mut self) -> io::Result<&mut Box<dyn Sink>> {
        let sink = match self.sink.take() {
            Some(sink) => sink,
            None => (self.open)()?,
        };
        Ok(self.sink.insert(sink))
    }
}

impl Sink for Reopened {
    fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64> {
        self.sink()?.take(batch, filter)
    }

    fn status(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()> {
        self.sink()?.status(record, interface, names)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.flush())
    }

    fn poll(&mut self, finish: bool) -> u64 {
        // What keeps it from opening is said when it should take something.
        self.sink().map_or(0, |sink| sink.poll(finish))
    }

    fn leave(&mut self) -> u64 {
        self.sink.as_mut().map_or(0, |sink| sink.leave())
    }

    fn waiting(&self) -> Option<u64> {
        self.sink.as_ref().and_then(|sink| sink.waiting())
    }
}

/// Another `[flow_logs]`, opened and not yet in force.
#[derive(Debug)]
pub struct Prepared {
    config: config::FlowLogs,
    destinations: Vec<(config::Destination, Arc<Destination>)>,
    /// Those of them that were not there before.
    added: Vec<Arc<Destination>>,
    regroup: Option<Regroup>,
    /// What is prepared is a difference: nobody prepares another one before this is made or gone.
    _turn: Arc<()>,
}

impl Prepared {
    /// For the sweeper; the first time.
    pub fn regroup(&mut self) -> Option<Regroup> {
        self.regroup.take()
    }
}

impl FlowLogs {
    /// Opens what another `[flow_logs]` has and this one has not. Nothing changes yet.
    ///
    /// # Errors
    /// When a destination or a ledger cannot be opened; what was opened is closed again. Or when another one is prepared and has
    /// not been made yet.
    pub fn prepare(&self, config: &config::FlowLogs) -> Result<Prepared, FlowLogError> {
        let turn = self.turn.clone();
        if Arc::strong_count(&turn) > 2 {
            return Err(FlowLogError::Changing);
        }
        let mut added = Vec::new();
        let prepared = self.open_added(config, &mut added);
        if prepared.is_err() {
            added.drain(..).for_each(|destination| self.leave(destination));
        }
        let (destinations, regroup) = prepared?;
        Ok(Prepared { config: config.clone(), destinations, added, regroup: Some(regroup), _turn: turn })
    }

    /// It is not to be. Nothing was handed to what it has added, but an earlier controller may have left something there.
    pub fn abandon(&self, prepared: Prepared) {
        prepared.added.into_iter().for_each(|destination| self.leave(destination));
    }

    #[expect(clippy::type_complexity, reason = "the two halves of one value")]
    fn open_added(
        &self,
        config: &config::FlowLogs,
        added: &mut Vec<Arc<Destination>>,
    ) -> Result<(Vec<(config::Destination, Arc<Destination>)>, Regroup), FlowLogError> {
        let there = self.destinations().clone();
        let (mut destinations, mut changes) = (Vec::new(), Vec::new());
        for wanted in &config.destinations {
            let name = name(&wanted.kind);
            let failed = |source| FlowLogError::Destination { name: name.clone(), source };
            let destination = if let Some((before, destination)) = there.iter().find(|(_, at)| at.name() == name) {
                let change = self.change(before, wanted, &name).map_err(failed)?;
                changes.extend(change.map(|change| (destination.clone(), change)));
                destination.clone()
            } else {
                self.refuse_while_it_ends(&name).map_err(failed)?;
                let opened = self.wanted(wanted, &name).destination().map_err(failed)?;
                added.push(Arc::new(opened));
                added[added.len() - 1].clone()
            };
            destinations.push((wanted.clone(), destination));
        }
        let by_interval = |list: &[(config::Destination, Arc<Destination>)]| {
            list.iter().map(|(config, destination)| (config.interval, destination.clone())).collect::<Vec<_>>()
        };
        let directory = &self.directory;
        let regroup = Regroup::open(directory, &by_interval(&there), by_interval(&destinations), changes);
        let regroup = regroup.map_err(|source| FlowLogError::Ledger { directory: directory.clone(), source })?;
        Ok((destinations, regroup))
    }

    fn wanted<'a>(&'a self, config: &'a config::Destination, name: &'a str) -> Wanted<'a> {
        Wanted { config, name, home: self.home(), identity: &self.identity }
    }

    /// What there is to change about a destination that stays in its place.
    fn change(
        &self,
        before: &config::Destination,
        after: &config::Destination,
        name: &str,
    ) -> io::Result<Option<Change>> {
        let stays = before.kind == after.kind && before.format == after.format;
        if stays && before.filter == after.filter {
            return Ok(None);
        }
        let filter = after.filter.clone();
        if stays {
            return Ok(Some(Change { filter, sink: None }));
        }
        self.wanted(after, name).check()?;
        // Another spool is another place.
        let goes_on = before.kind == after.kind;
        let (after, name, identity) = (after.clone(), name.to_owned(), self.identity.clone());
        let (instance, directory) = (self.instance.clone(), self.directory.clone());
        let open = move || {
            let home = Home { instance: &instance, directory: &directory, adopted: true };
            Wanted { config: &after, name: &name, home, identity: &identity }.sink().map(|(sink, _)| sink)
        };
        Ok(Some(Change { filter, sink: Some(Reopened::new(Box::new(open), goes_on)) }))
    }

    fn refuse_while_it_ends(&self, name: &str) -> io::Result<()> {
        let mut leaving = self.leaving();
        leaving.retain(|destination| destination.is_running());
        if leaving.iter().any(|destination| destination.name() == name) {
            return Err(io::Error::other(
                "what it had when it was removed is still being written; try again in a few seconds",
            ));
        }
        Ok(())
    }

    /// The sweeper has made the change: from here on it is what there is.
    pub fn commit(&self, prepared: Prepared) {
        let Prepared { config, destinations, .. } = prepared;
        self.identity.set(config);
        let before = std::mem::replace(&mut *self.destinations(), destinations);
        let stays: Vec<_> = self.destinations().iter().map(|(_, destination)| destination.clone()).collect();
        for (_, destination) in before {
            if !stays.iter().any(|other| Arc::ptr_eq(other, &destination)) {
                self.leave(destination);
            }
        }
    }

    /// Has one end that nobody hands anything any more. Whoever asks goes on meanwhile.
    fn leave(&self, destination: Arc<Destination>) {
        self.leaving().push(destination.clone());
        let drain = move || destination.finish(LAST_RECORDS);
        if let Err(error) = std::thread::Builder::new().name("flow-log-end".to_owned()).spawn(drain) {
            tracing::error!(error = crate::error::one_line(&error), "cannot end a destination of flow logs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home { instance: "test", directory: directory.path(), adopted: false };
        let nothing = config::FlowLogs::default();
        let (logs, _feed) = FlowLogs::open(&nothing, home).expect("files");
        let first = logs.prepare(&nothing).expect("it is the only one");
        assert!(matches!(logs.prepare(&nothing), Err(FlowLogError::Changing)));
        logs.commit(first);
        logs.abandon(logs.prepare(&nothing).expect("the first is made"));
        logs.prepare(&nothing).expect("the second is gone");
    }

    #[test]
    fn what_is_added_while_all_ends_ends_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home { instance: "test", directory: directory.path(), adopted: false };
        let (logs, _feed) = FlowLogs::open(&config::FlowLogs::default(), home).expect("files");
        let path = directory.path().join("flow.log");
        let config = format!("[[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\n", path.display());
        let config = config::parse(&config, "test").expect("a config").flow_logs;
        let prepared = logs.prepare(&config).expect("a file");
        let added = prepared.added[0].clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                logs.commit(prepared);
            });
            logs.finish(Duration::from_secs(5));
        });
        assert!(!added.is_running());
    }
}
