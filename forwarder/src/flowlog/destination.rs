//! A destination at work: a thread that takes windows from a bounded queue and gives them to a sink; what cannot be kept is
//! counted and declared.
//!
//! ```text
//! sweeper --Message--> queue --> Worker --> Sink (text to a file, events, packets …)
//!    '- full for too long: lost        '- refused: lost
//! lost ---> counter, and SKIPDATA for every interface with the next window that can be written
//! ```

use super::change::Change;
use super::progress::Progress;
use crate::record::{Batch, Filter, Interfaces, Record, Span, Window};
use crossbeam::channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches that may wait for a destination.
const QUEUE: usize = 32;
/// How long the sweeper waits for a destination whose queue is full, before it loses records to it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a sink without work is asked whether it is time for something.
const TICK: Duration = Duration::from_millis(250);

/// Where records go. All methods may block; they have a thread of their own.
pub trait Sink: Send {
    /// Takes the windows that the filter lets through, all or none; returns how many records they made.
    ///
    /// # Errors
    /// When none of them is kept.
    fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64>;

    /// Takes a record that is about an interface and not about packets.
    ///
    /// # Errors
    /// When it is not kept.
    fn status(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()>;

    /// Makes what was taken safe against the end of this process.
    ///
    /// # Errors
    /// When it is not.
    fn flush(&mut self) -> io::Result<()>;

    /// Time has passed, or all is to be finished now: rotates, sends. Returns records that were given up.
    fn poll(&mut self, finish: bool) -> u64;

    /// Lets go of its place at once, for another sink that goes on with what waits there. Returns records that were given up.
    fn leave(&mut self) -> u64 {
        self.poll(true)
    }

    /// Bytes that wait on disk for a service; `None`: nothing ever does.
    fn waiting(&self) -> Option<u64> {
        None
    }
}

/// What goes through the queue.
#[derive(Debug)]
enum Message {
    Windows(Arc<Batch>),
    Close(Span, Arc<Interfaces>),
    Lost,
    /// The queue has room again: what was lost meanwhile is to be declared, and a change is made that found none.
    Room,
    /// What is next comes after all that is before this.
    Change,
    Arrived(u64),
    Finish,
}

/// What has become of the records of a destination.
#[derive(Debug, Default)]
pub struct Counters {
    records: AtomicU64,
    lost: AtomicU64,
    /// Bytes in the spool, more one; 0: there is none.
    waiting: AtomicU64,
    error: Mutex<Option<String>>,
}

/// The same, to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationStatus {
    /// Which destination.
    pub name: String,
    /// Records taken.
    pub records: u64,
    /// Windows and records lost; each time a SKIPDATA record says so.
    pub lost: u64,
    /// Bytes that wait on disk for the service; none where there is no spool.
    pub spool_bytes: Option<u64>,
    /// The latest failure, until something succeeds.
    pub error: Option<String>,
}

/// The sweeper's end of a destination.
#[derive(Debug)]
pub struct Destination {
    name: String,
    queue: Sender<Message>,
    counters: Arc<Counters>,
    progress: Arc<Progress>,
    /// What the worker is to become.
    next: Arc<Mutex<Option<Change>>>,
    /// The queue was full for too long and has not had room since.
    stalled: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Destination {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(name: String, filter: Filter, sink: Box<dyn Sink>, progress: Progress) -> io::Result<Self> {
        let (queue, messages) = bounded(QUEUE);
        let (counters, progress) = (Arc::<Counters>::default(), Arc::new(progress));
        let next = Arc::<Mutex<Option<Change>>>::default();
        let worker = Worker {
            name: name.clone(),
            filter,
            sink,
            counters: counters.clone(),
            progress: progress.clone(),
            next: next.clone(),
            seen: Vec::new(),
            owes_skip: false,
            flushed: true,
        };
        let thread = std::thread::Builder::new().name("flow-log".to_owned()).spawn(move || worker.run(&messages))?;
        let (stalled, thread) = (AtomicBool::new(false), Mutex::new(Some(thread)));
        Ok(Self { name, queue, counters, progress, next, stalled, thread })
    }

    /// As people call it: no two destinations that run have one name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has what is handed over from now on dealt with in another way.
    pub fn change(&self, change: Change) {
        {
            let mut next = self.next.lock().expect("no thread panics while it holds what is next");
            *next = Some(change.after(next.take()));
        }
        // One that does not take it for lack of room does when it has room again.
        self.send(Message::Change, 0);
    }

    /// Whether its thread still has its place in its hands.
    pub fn is_running(&self) -> bool {
        let thread = self.thread.lock().expect("no thread panics while it holds the thread");
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Before windows are taken from the ledger; see [`Progress`].
    pub fn mark(&self) -> u64 {
        self.progress.mark()
    }

    /// All that was taken since a mark has been handed over.
    pub fn arrived(&self, mark: u64) {
        self.send(Message::Arrived(mark), 0);
    }

    /// Hands over windows.
    pub fn windows(&self, batch: Arc<Batch>) {
        let count = batch.windows.len() as u64;
        self.send(Message::Windows(batch), count);
    }

    /// A window has ended.
    pub fn close(&self, span: Span, interfaces: Arc<Interfaces>) {
        self.send(Message::Close(span, interfaces), 0);
    }

    /// Records have been lost before they came here.
    pub fn lost(&self, count: u64) {
        self.counters.lost.fetch_add(count, Ordering::Relaxed);
        self.send(Message::Lost, 0);
    }

    /// Has it end, where there is room to say so; [`Self::finish`] waits for it.
    pub fn begin_to_finish(&self) {
        let _ = self.queue.try_send(Message::Finish);
    }

    /// Ends the thread, when everything that was handed over has been dealt with or `patience` is over.
    pub fn finish(&self, patience: Duration) {
        let deadline = std::time::Instant::now() + patience;
        let _ = self.queue.send_timeout(Message::Finish, patience);
        while self.is_running() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.is_running() {
            tracing::warn!("flow logs: {} does not end; what it has not written stays behind", self.name);
            return;
        }
        let thread = self.thread.lock().expect("no thread panics while it holds the thread").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("flow logs: the thread of {} has failed", self.name);
        }
    }

    /// What has become of its records.
    pub fn status(&self) -> DestinationStatus {
        let counters = &self.counters;
        DestinationStatus {
            name: self.name.clone(),
            records: counters.records.load(Ordering::Relaxed),
            lost: counters.lost.load(Ordering::Relaxed),
            spool_bytes: counters.waiting.load(Ordering::Relaxed).checked_sub(1),
            error: counters.error.lock().expect("no thread panics while it holds the error").clone(),
        }
    }

    fn send(&self, message: Message, windows: u64) {
        let sent = if self.stalled.load(Ordering::Relaxed) {
            self.queue.try_send(message).map_err(|error| matches!(error, TrySendError::Full(_)))
        } else {
            self.queue.send_timeout(message, PATIENCE).map_err(|error| matches!(error, SendTimeoutError::Timeout(_)))
        };
        if sent.is_err() && !self.stalled.swap(true, Ordering::Relaxed) {
            tracing::warn!("flow logs: {} is too slow: records are being lost", self.name);
        }
        match sent {
            Ok(()) => {
                // What was lost meanwhile is declared with the next window: not before that is on its way is all well again.
                if self.stalled.load(Ordering::Relaxed) && self.queue.try_send(Message::Room).is_ok() {
                    self.stalled.store(false, Ordering::Relaxed);
                }
            }
            Err(_) => {
                self.counters.lost.fetch_add(windows, Ordering::Relaxed);
            }
        }
    }
}

/// The thread's own state.
struct Worker {
    name: String,
    filter: Filter,
    sink: Box<dyn Sink>,
    counters: Arc<Counters>,
    progress: Arc<Progress>,
    next: Arc<Mutex<Option<Change>>>,
    /// Interfaces with records in this window, by number.
    seen: Vec<bool>,
    /// Something was lost and has not been declared.
    owes_skip: bool,
    /// All that was taken is safe.
    flushed: bool,
}

impl Worker {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(TICK) {
                Ok(Message::Windows(batch)) => self.windows(&batch),
                Ok(Message::Close(span, interfaces)) => self.close(span, &interfaces),
                Ok(Message::Lost) => self.owes_skip = true,
                Ok(Message::Room) => {
                    self.owes_skip = true;
                    self.change();
                }
                Ok(Message::Change) => self.change(),
                Ok(Message::Arrived(mark)) => {
                    if self.flush() {
                        self.progress.clear(mark);
                    }
                }
                Err(crossbeam::channel::RecvTimeoutError::Timeout) => {}
                Ok(Message::Finish) | Err(_) => break,
            }
            let given_up = self.sink.poll(false);
            self.note_lost(given_up, None);
            let waiting = self.sink.waiting().map_or(0, |bytes| bytes.saturating_add(1));
            self.counters.waiting.store(waiting, Ordering::Relaxed);
        }
        self.flush();
        let given_up = self.sink.poll(true);
        self.note_lost(given_up, None);
    }

    /// Becomes what is next, if anything is.
    fn change(&mut self) {
        let next = self.next.lock().expect("no thread panics while it holds what is next").take();
        let Some(Change { filter, sink }) = next else { return };
        self.filter = filter;
        if let Some(sink) = sink {
            self.flush();
            let given_up = if sink.goes_on() { self.sink.leave() } else { self.sink.poll(true) };
            self.note_lost(given_up, None);
            // The old one lets go of the place before the new one, which opens with its first use, takes it.
            self.sink = Box::new(sink);
        }
    }

    fn windows(&mut self, batch: &Batch) {
        self.seen.resize(batch.interfaces.list.len().max(self.seen.len()), false);
        for (interface, _) in batch.windows.iter().flat_map(Window::records) {
            if let Some(seen) = self.seen.get_mut(usize::from(interface)) {
                *seen = true;
            }
        }
        self.flushed = false;
        match self.sink.take(batch, &self.filter) {
            Ok(records) => {
                self.counters.records.fetch_add(records, Ordering::Relaxed);
                self.note_success();
            }
            Err(error) => self.note_lost(batch.windows.len() as u64, Some(&error)),
        }
    }

    fn close(&mut self, span: Span, names: &Interfaces) {
        let skip = std::mem::take(&mut self.owes_skip);
        let mut failed = None;
        for number in 1..names.list.len() as u16 {
            let seen = self.seen.get(usize::from(number)).copied().unwrap_or(false);
            let records = [(skip, Record::SkipData(span)), (!seen && !skip, Record::NoData(span))];
            for (_, record) in records.into_iter().filter(|(wanted, _)| *wanted) {
                match self.sink.status(&record, number, names) {
                    Ok(()) => {
                        self.counters.records.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => failed = Some(error),
                }
            }
        }
        self.seen.clear();
        self.flushed = false;
        if let Some(error) = failed {
            // A NODATA record that is lost is declared as well: the window's traffic is then not known.
            self.note_lost(1, Some(&error));
        }
    }

    fn flush(&mut self) -> bool {
        if !self.flushed {
            match self.sink.flush() {
                Ok(()) => self.flushed = true,
                Err(error) => self.note_lost(1, Some(&error)),
            }
        }
        self.flushed
    }

    fn note_success(&self) {
        let before = self.counters.error.lock().expect("no thread panics while it holds the error").take();
        if before.is_some() {
            tracing::info!("flow logs: {} takes records again", self.name);
        }
    }

    fn note_lost(&mut self, count: u64, why: Option<&io::Error>) {
        if count > 0 {
            self.owes_skip = true;
            self.counters.lost.fetch_add(count, Ordering::Relaxed);
        }
        if let Some(why) = why {
            let why = crate::error::one_line(why);
            let mut error = self.counters.error.lock().expect("no thread panics while it holds the error");
            if error.as_ref() != Some(&why) {
                tracing::error!("flow logs: {} loses records: {why}", self.name);
            }
            *error = Some(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flowlog::change::{Opener, Reopened};
    use crate::record::{Interface, NOWHERE};

    /// Remembers what it was given, and refuses on demand.
    #[derive(Clone, Debug, Default)]
    struct Memory(Arc<Mutex<(Vec<String>, bool)>>);

    impl Memory {
        fn add(&self, text: String) -> io::Result<()> {
            let mut memory = self.0.lock().expect("no test panics with it");
            if memory.1 {
                return Err(io::Error::other("full"));
            }
            memory.0.push(text);
            Ok(())
        }

        fn refuse(&self, refuse: bool) {
            self.0.lock().expect("no test panics with it").1 = refuse;
        }

        fn all(&self) -> Vec<String> {
            self.0.lock().expect("no test panics with it").0.clone()
        }
    }

    impl Sink for Memory {
        fn take(&mut self, batch: &Batch, _: &Filter) -> io::Result<u64> {
            self.add(format!("{} windows", batch.windows.len())).map(|()| batch.windows.len() as u64)
        }

        fn status(&mut self, record: &Record<'_>, interface: u16, _: &Interfaces) -> io::Result<()> {
            let kind = if matches!(record, Record::NoData(_)) { "NODATA" } else { "SKIPDATA" };
            self.add(format!("{kind} {interface}"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn poll(&mut self, _: bool) -> u64 {
            0
        }
    }

    /// Takes windows one by one, each when it may.
    struct Slow(Memory, Receiver<()>);

    impl Sink for Slow {
        fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64> {
            // Nobody is there any more to hold it back.
            let _ = self.1.recv();
            self.0.take(batch, filter)
        }

        fn status(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()> {
            self.0.status(record, interface, names)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn poll(&mut self, _: bool) -> u64 {
            0
        }
    }

    fn names() -> Arc<Interfaces> {
        Arc::new(Interfaces { list: vec![Interface::default(); 3], ..Interfaces::default() })
    }

    fn one_window() -> Arc<Batch> {
        let window = Window { ingress: 1, egress: NOWHERE, ..Window::default() };
        Arc::new(Batch { interfaces: names(), windows: vec![window] })
    }

    fn destination(memory: &Memory) -> (tempfile::TempDir, Destination) {
        let directory = tempfile::tempdir().expect("a directory");
        let (progress, _) = Progress::open(&directory.path().join("progress")).expect("a file");
        let sink = Box::new(memory.clone());
        (directory, Destination::start("test".to_owned(), Filter::All, sink, progress).expect("a thread"))
    }

    #[test]
    fn silent_interfaces_are_named() {
        let memory = Memory::default();
        let (_directory, destination) = destination(&memory);
        destination.windows(one_window());
        destination.close(Span::default(), names());
        destination.close(Span::default(), names());
        destination.finish(Duration::from_secs(5));
        assert_eq!(memory.all(), ["1 windows", "NODATA 2", "NODATA 1", "NODATA 2"]);
        assert_eq!((destination.status().records, destination.status().lost), (4, 0));
    }

    /// What was handed over before a change is the old sink's, whatever is said of losses in between.
    #[test]
    fn a_change_waits_for_all_that_is_before_it() {
        let (before, after) = (Memory::default(), Memory::default());
        let (permits, waits) = bounded(8);
        let directory = tempfile::tempdir().expect("a directory");
        let (progress, _) = Progress::open(&directory.path().join("progress")).expect("a file");
        let sink = Box::new(Slow(before.clone(), waits));
        let destination = Destination::start("test".to_owned(), Filter::All, sink, progress).expect("a thread");
        destination.windows(one_window());
        destination.lost(1);
        destination.windows(one_window());
        let next = after.clone();
        let opener: Opener = Box::new(move || Ok(Box::new(next.clone())));
        destination.change(Change { filter: Filter::All, sink: Some(Reopened::new(opener, true)) });
        destination.windows(one_window());
        (0..2).for_each(|_| permits.send(()).expect("it waits"));
        destination.finish(Duration::from_secs(5));
        assert_eq!((before.all().len(), after.all().len()), (2, 1));
    }

    #[test]
    fn what_is_lost_is_counted_and_declared_once_it_can_be() {
        let memory = Memory::default();
        let (_directory, destination) = destination(&memory);
        memory.refuse(true);
        destination.windows(one_window());
        destination.close(Span::default(), names());
        while destination.status().lost < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(destination.status().error.is_some_and(|error| error.contains("full")));
        memory.refuse(false);
        destination.windows(one_window());
        destination.close(Span::default(), names());
        destination.windows(one_window());
        destination.close(Span::default(), names());
        destination.finish(Duration::from_secs(5));
        assert_eq!(memory.all(), ["1 windows", "SKIPDATA 1", "SKIPDATA 2", "1 windows", "NODATA 2"]);
        assert_eq!(destination.status().error, None);
    }

    #[test]
    fn what_a_full_queue_loses_is_declared_however_slowly_it_empties() {
        let memory = Memory::default();
        let (permits, waits) = bounded(1);
        let directory = tempfile::tempdir().expect("a directory");
        let (progress, _) = Progress::open(&directory.path().join("progress")).expect("a file");
        let sink = Box::new(Slow(memory.clone(), waits));
        let destination = Destination::start("test".to_owned(), Filter::All, sink, progress).expect("a thread");
        let wait_for = |length| {
            while destination.queue.len() != length {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        destination.windows(one_window());
        wait_for(0);
        (0..QUEUE).for_each(|_| destination.windows(one_window()));
        destination.stalled.store(true, Ordering::Relaxed);
        destination.windows(one_window());
        assert_eq!(destination.status().lost, 1);
        // One place is free at a time, as with a sink that is always a little too slow.
        permits.send(()).expect("it waits");
        wait_for(QUEUE - 1);
        destination.windows(one_window());
        drop(permits);
        wait_for(0);
        destination.windows(one_window());
        destination.close(Span::default(), names());
        destination.finish(Duration::from_secs(5));
        assert!(memory.all().contains(&"SKIPDATA 1".to_owned()), "{:?}", memory.all());
    }
}
