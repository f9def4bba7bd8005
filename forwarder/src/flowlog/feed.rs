//! From the sweeper's passes to windows: who has a window ending, what each flow entry has done in it, and off it goes.
//!
//! ```text
//! begin(ticks) -> observe(live entry) … end(freed entry) … refuse(refused packets) … -> finish
//!                   |  subtracts in each group's ledger
//!                   '-> Group (one interval): batch of windows -> destinations of that interval
//! ```
//!
//! A pass that comes after a window's end closes it: every flow with packets gets its record, silent interfaces are named. Windows
//! end with the wall clock's round times, as AWS's do. A flow that ends gets its last record at once.

mod regroup;

pub use regroup::Regroup;

use super::clock::{Clocks, Moment};
use super::destination::Destination;
use super::ledger::{Counts, Ledger, Pass, Taken};
use super::refused::{Refused, RefusedCount};
use super::watch::Watchers;
use crate::record::{Batch, Interfaces, NOWHERE, Span, Window};
use forwarder_ebpf::abi::{Family, Ticks};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Windows handed on at once.
const BATCH: usize = 4096;
/// Refused 5-tuples that a group remembers until its window ends; more are handed on early.
const REFUSED: usize = 1 << 16;
/// Window of those who watch.
const WATCHED: Duration = Duration::from_secs(1);

/// How the names of ledgers begin.
pub(super) const LEDGER: &str = "flow-logs-ledger-";

/// Destinations with one interval.
#[derive(Debug)]
struct Group {
    interval: Duration,
    ledgers: [Ledger; 2],
    paths: [PathBuf; 2],
    /// What there was before this ledger is not to be logged.
    adopts: [bool; 2],
    /// It begins with what comes after this pass.
    joins: bool,
    out: Out,
    /// When the window began, seconds since 1970.
    opened: i64,
    /// When it ends, on the steady clock.
    ends: Duration,
    closing: bool,
    windows: Vec<Window>,
    marks: Option<Vec<u64>>,
    refused: HashMap<Refused, Window>,
}

/// Where a group's windows go.
#[derive(Debug)]
enum Out {
    Destinations(Vec<Arc<Destination>>),
    Watchers(Arc<Watchers>),
}

/// The sweeper's side of flow logs.
#[derive(Debug)]
pub struct Feed {
    directory: PathBuf,
    groups: Vec<Group>,
    watchers: Arc<Watchers>,
    clocks: Clocks,
    pass: Pass,
    interfaces: Arc<Interfaces>,
    /// What the next pass changes.
    next: Option<Regroup>,
}

/// What a group's ledgers are to begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Books {
    /// What is in the files; else every entry's beginning.
    FromBirth,
    /// What is in the files; else what comes from now on.
    Adopted,
    /// What comes from now on.
    Fresh,
}

impl Feed {
    /// With destinations by interval. `directory` is where ledgers are; `adopted`: the flow tables were there before, so an
    /// interval without a ledger begins with what comes from now on.
    ///
    /// # Errors
    /// When a ledger cannot be opened.
    pub fn open(
        directory: &Path,
        destinations: Vec<(Duration, Arc<Destination>)>,
        watchers: Arc<Watchers>,
        adopted: bool,
    ) -> io::Result<Self> {
        let books = if adopted { Books::Adopted } else { Books::FromBirth };
        let mut groups = Vec::new();
        for (interval, destinations) in regroup::by_interval(destinations) {
            let group = Group::open(ledgers(directory, interval), interval, Out::Destinations(destinations), books)?;
            if group.adopts.contains(&true) {
                group.declare_loss(1);
            }
            groups.push(group);
        }
        let (directory, clocks, interfaces) = (directory.to_owned(), Clocks::default(), Arc::default());
        Ok(Self { directory, groups, watchers, clocks, pass: Pass::default(), interfaces, next: None })
    }

    /// With time from elsewhere.
    #[must_use]
    pub fn with_clocks(self, clocks: Clocks) -> Self {
        Self { clocks, ..self }
    }

    /// Whether anybody wants records.
    pub fn is_wanted(&self) -> bool {
        !self.groups.is_empty() || self.watchers.is_watched()
    }

    /// When a window ends next, on the machine's steady clock from now.
    pub fn ends_in(&self) -> Option<Duration> {
        let now = self.clocks.steady();
        // Who watches takes what comes with the passes that there are.
        let logs = self.groups.iter().filter(|group| matches!(group.out, Out::Destinations(_)));
        logs.map(|group| group.ends.saturating_sub(now)).min()
    }

    /// A pass begins, at this time of the datapath. `close`: all windows end with it.
    pub fn begin(&mut self, ticks: Ticks, per_second: u32, interfaces: Arc<Interfaces>, close: bool) {
        let now = self.clocks.moment(ticks, per_second);
        let first = self.pass.now.per_second == 0;
        self.pass = Pass { before: if first { ticks } else { self.pass.now.ticks }, now };
        if !Arc::ptr_eq(&self.interfaces, &interfaces) {
            // What is in hand refers to the old numbers.
            self.groups.iter_mut().for_each(|group| group.change_interfaces(&self.interfaces));
            self.interfaces = interfaces;
        }
        self.serve_watchers();
        let close = close || self.join();
        for group in &mut self.groups {
            if group.ends == Duration::ZERO {
                group.begin_window(&now);
            }
            group.closing = !group.joins && (close || now.steady >= group.ends);
        }
    }

    /// A live entry. `describe` fills in what does not change with the counters.
    pub fn observe(&mut self, family: Family, slot: u32, counts: &Counts, describe: impl Fn(&Moment) -> Window) {
        for group in &mut self.groups {
            let ledger = &mut group.ledgers[family as usize];
            if group.adopts[family as usize] {
                ledger.adopt(slot, counts);
            } else if let Some(taken) = ledger.observe(slot, counts, &self.pass, group.closing) {
                let window = fill(describe(&self.pass.now), &taken, counts, &self.pass.now);
                group.add(window, &self.interfaces);
            }
        }
    }

    /// An entry that is freed now, with its final counters.
    pub fn end(&mut self, family: Family, slot: u32, counts: &Counts, describe: impl Fn(&Moment) -> Window) {
        for group in &mut self.groups {
            let ledger = &mut group.ledgers[family as usize];
            if group.adopts[family as usize] {
                ledger.adopt(slot, counts);
            }
            if let Some(taken) = ledger.end(slot, counts, &self.pass) {
                let window = fill(describe(&self.pass.now), &taken, counts, &self.pass.now);
                group.add(Window { ends: true, ..window }, &self.interfaces);
            }
        }
    }

    /// Packets that were refused since the last time.
    pub fn refuse(&mut self, refused: &Refused, count: &RefusedCount) {
        let now = self.pass.now;
        for group in self.groups.iter_mut().filter(|group| !group.joins) {
            group.refuse(refused, count, &now, &self.interfaces);
        }
    }

    /// Before refused packets are taken out of the datapath: from here on they exist only in this process.
    pub fn mark(&mut self) {
        self.groups.iter_mut().for_each(Group::mark);
    }

    /// Refused packets that the datapath had no room to tell of.
    pub fn refused_uncounted(&mut self, packets: u64) {
        if packets > 0 {
            self.groups.iter().filter(|group| !group.joins).for_each(|group| group.declare_loss(packets));
        }
    }

    /// Has the books on disk: before slots of the flow table change hands.
    pub fn write(&mut self) {
        self.groups.iter_mut().for_each(Group::write_ledgers);
    }

    /// The pass is over. `whole`: it has seen every entry; else what it was to change, and books that it was to begin, are the
    /// next one's.
    pub fn finish(&mut self, whole: bool) {
        for group in &mut self.groups {
            group.finish_pass(&self.pass.now, &self.interfaces);
            if whole {
                group.settle();
            }
        }
        if whole {
            self.regroup();
        }
    }

    /// A group for those who watch, as long as there are any.
    fn serve_watchers(&mut self) {
        let at = self.groups.iter().position(|group| matches!(group.out, Out::Watchers(_)));
        match (at, self.watchers.is_watched()) {
            (Some(at), false) => drop(self.groups.remove(at)),
            (None, true) => {
                let (paths, out) = (paths(&self.directory, "watch"), Out::Watchers(self.watchers.clone()));
                match Group::open(paths, WATCHED, out, Books::Fresh) {
                    Ok(group) => self.groups.push(group),
                    Err(error) => {
                        tracing::error!(error = crate::error::one_line(&error), "cannot follow flows");
                    }
                }
            }
            _ => {}
        }
    }
}

/// Where the ledgers of an interval are.
pub(super) fn ledgers(directory: &Path, interval: Duration) -> [PathBuf; 2] {
    paths(directory, &interval.as_secs().to_string())
}

fn paths(directory: &Path, name: &str) -> [PathBuf; 2] {
    ["v4", "v6"].map(|family| directory.join(format!("{LEDGER}{name}-{family}")))
}

/// What was taken, in the window that it belongs to.
fn fill(window: Window, taken: &Taken, counts: &Counts, now: &Moment) -> Window {
    let last_ms = now.unix_ms_of(counts.last);
    Window {
        packets: taken.packets,
        bytes: taken.bytes,
        tcp_flags: taken.tcp_flags,
        begins: taken.begins,
        first_ms: now.unix_ms_of(taken.first).min(last_ms),
        last_ms,
        ..window
    }
}

impl Group {
    fn open(paths: [PathBuf; 2], interval: Duration, out: Out, books: Books) -> io::Result<Self> {
        let open = |path: &PathBuf| -> io::Result<(Ledger, bool)> {
            let adopts = books == Books::Fresh || books == Books::Adopted && !path.exists();
            Ok((if adopts { Ledger::open_aside(path)? } else { Ledger::open(path)?.0 }, adopts))
        };
        let ((v4, adopts4), (v6, adopts6)) = (open(&paths[0])?, open(&paths[1])?);
        Ok(Self {
            interval,
            ledgers: [v4, v6],
            paths,
            adopts: [adopts4, adopts6],
            joins: false,
            out,
            opened: 0,
            ends: Duration::ZERO,
            closing: false,
            windows: Vec::new(),
            marks: None,
            refused: HashMap::new(),
        })
    }

    fn destinations(&self) -> &[Arc<Destination>] {
        match &self.out {
            Out::Destinations(list) => list,
            Out::Watchers(_) => &[],
        }
    }

    fn declare_loss(&self, count: u64) {
        self.destinations().iter().for_each(|destination| destination.lost(count));
    }

    /// From now to the next round time, or the one after when that is near.
    fn begin_window(&mut self, now: &Moment) {
        let interval = self.interval.as_millis() as i64;
        let left = interval - now.unix_ms.rem_euclid(interval);
        let left = if left < interval / 2 { left + interval } else { left };
        self.opened = now.unix();
        self.ends = now.steady + Duration::from_millis(left as u64);
    }

    fn mark(&mut self) {
        if self.marks.is_none() {
            self.marks = Some(self.destinations().iter().map(|destination| destination.mark()).collect());
        }
    }

    fn add(&mut self, window: Window, interfaces: &Arc<Interfaces>) {
        self.mark();
        self.windows.push(window);
        if self.windows.len() >= BATCH {
            self.hand_over(interfaces);
        }
    }

    fn refuse(&mut self, refused: &Refused, count: &RefusedCount, now: &Moment, interfaces: &Arc<Interfaces>) {
        self.mark();
        let (first_ms, last_ms) = (now.unix_ms_of(count.first), now.unix_ms_of(count.last));
        let window = self.refused.entry(*refused).or_insert_with(|| Window {
            arrived: refused.tuple,
            left: refused.tuple,
            ingress: refused.ingress,
            egress: NOWHERE,
            protocol: refused.protocol,
            refused: Some(refused.reason),
            rule: refused.rule,
            first_ms,
            ..Window::default()
        });
        window.packets += count.packets;
        window.bytes += count.bytes;
        window.tcp_flags |= count.tcp_flags;
        window.last_ms = last_ms;
        if self.refused.len() >= REFUSED {
            self.take_refused(interfaces);
        }
    }

    fn take_refused(&mut self, interfaces: &Arc<Interfaces>) {
        for (_, window) in std::mem::take(&mut self.refused) {
            self.add(window, interfaces);
        }
    }

    fn change_interfaces(&mut self, old: &Arc<Interfaces>) {
        self.take_refused(old);
        self.hand_over(old);
    }

    /// The ledger first: what is handed over must never come out of it again.
    fn hand_over(&mut self, interfaces: &Arc<Interfaces>) {
        if self.windows.is_empty() {
            return;
        }
        self.write_ledgers();
        let windows = std::mem::replace(&mut self.windows, Vec::with_capacity(BATCH));
        let batch = Arc::new(Batch { interfaces: interfaces.clone(), windows });
        match &self.out {
            Out::Destinations(list) => list.iter().for_each(|destination| destination.windows(batch.clone())),
            Out::Watchers(watchers) => watchers.windows(&batch),
        }
    }

    fn write_ledgers(&mut self) {
        for ledger in &mut self.ledgers {
            if let Err(error) = ledger.write() {
                // Records go on; only a controller that is killed now would leave double ones behind.
                tracing::error!(error = crate::error::one_line(&error), "cannot write the ledger of flow logs");
            }
        }
    }

    fn finish_pass(&mut self, now: &Moment, interfaces: &Arc<Interfaces>) {
        if self.closing {
            self.take_refused(interfaces);
        }
        self.hand_over(interfaces);
        self.write_ledgers();
        // Refused packets that wait for their window's end are still only here.
        if self.refused.is_empty()
            && let Some(marks) = self.marks.take()
        {
            self.destinations().iter().zip(marks).for_each(|(destination, mark)| destination.arrived(mark));
        }
        if std::mem::take(&mut self.closing) {
            let span = Span { start: self.opened, end: now.unix().max(self.opened) };
            self.destinations().iter().for_each(|destination| destination.close(span, interfaces.clone()));
            self.begin_window(now);
        }
    }
}

#[cfg(test)]
mod tests;
