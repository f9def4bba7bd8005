//! What waits for a service of AWS: segments of whole lines in a directory, bounded, uploaded oldest first by a thread of its
//! own, and deleted when they have arrived.
//!
//! ```text
//! Worker -> current.open -- close --> 0000000000000001-TAG.log -> uploader -> service
//! ```
//!
//! A line is safe once it is in `current.open`: a controller that is killed leaves it, and the next one goes on with it. A
//! segment is closed by renaming, and its tag never changes, so that what is made of it can be made again. How far it was sent
//! is in its name as well, behind its number: `0000000000000001+20000-TAG.log`. What says how its
//! lines are to be read is in it as well, where that matters: it may wait for longer than the config stays as it is.

mod names;

use super::append::Appender;
use backon::{BackoffBuilder, ExponentialBuilder};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use names::{note_done, number, segments, tag};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shortest and longest time between two attempts, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long what waits is still tried when the controller ends; the rest stays for the next one.
const LAST_ATTEMPTS: Duration = Duration::from_secs(5);

/// Why a segment was not uploaded.
#[derive(Debug)]
pub enum Failed {
    /// It may go better later.
    Again(String),
    /// It will never be taken.
    Never(String),
}

/// What has become of a segment.
#[derive(Debug, Default)]
pub struct SoFar {
    /// Records that have been dealt with, where a segment is not sent all of a piece.
    pub done: usize,
    /// Lines that the service refused and that were not told of yet.
    pub refused: u64,
}

/// The service.
pub trait Upload: Send {
    /// Sends one segment, from where an earlier attempt has come to.
    ///
    /// # Errors
    /// When it did not arrive as a whole.
    fn upload(&mut self, tag: &str, lines: &[u8], so_far: &mut SoFar) -> Result<(), Failed>;

    /// How many records a segment has.
    fn records(&self, lines: &[u8]) -> u64 {
        lines.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Is told how to find out that an answer is not waited for any longer.
    fn watch(&mut self, _: Ends) {}
}

/// Whether the uploading thread has to give up even what it is at.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Shared>);

impl Ends {
    /// Now.
    pub fn are_here(&self) -> bool {
        self.0.gives_up.get().is_some_and(|time| Instant::now() >= *time)
    }
}

/// What the worker and the uploader share.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes in closed segments.
    waiting: AtomicU64,
    /// Lines that were given up and not told of yet.
    given_up: AtomicU64,
    /// Set when the thread is to end.
    ending: OnceLock<Ending>,
    /// When the attempt that it is at then is given up.
    gives_up: OnceLock<Instant>,
}

/// How the thread ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// With the attempt that it is at.
    Now,
    /// When nothing waits any more, or with the first attempt that fails after this time.
    After(Instant),
}

impl Ending {
    /// How long what it is at may take from then on: who waits for the end does not wait for a service that says nothing.
    fn answer_may_take(self) -> Duration {
        match self {
            Self::Now => LAST_ATTEMPTS,
            Self::After(_) => 3 * LAST_ATTEMPTS,
        }
    }
}

/// The worker's side.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    limit: u64,
    shared: Arc<Shared>,
    next: u64,
    wake: Option<Sender<()>>,
    uploader: Option<JoinHandle<()>>,
}

/// An open segment.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: Appender,
    begun: Instant,
}

impl Spool {
    /// Opens a directory with what an earlier controller left in it, and starts to upload.
    ///
    /// # Errors
    /// When it cannot be made or read, or there is no thread left.
    pub fn open(directory: &Path, limit: u64, mut upload: Box<dyn Upload>, name: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let shared = Arc::<Shared>::default();
        upload.watch(Ends(shared.clone()));
        let mut next = 0;
        for (number, path) in segments(directory)? {
            next = next.max(number + 1);
            shared.waiting.fetch_add(fs::metadata(path)?.len(), Ordering::Relaxed);
        }
        let (wake, woken) = bounded(1);
        let uploader =
            Uploader { directory: directory.to_owned(), shared: shared.clone(), upload, name: name.to_owned() };
        let thread = std::thread::Builder::new().name("flow-log-upload".to_owned());
        let thread = thread.spawn(move || uploader.run(&woken))?;
        let directory = directory.to_owned();
        Ok(Self { directory, limit, shared, next, wake: Some(wake), uploader: Some(thread) })
    }

    /// Opens a segment that is still open. `true`: its last line was torn and has been removed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn segment(&self, name: &str) -> io::Result<(Segment, bool)> {
        let path = self.directory.join(format!("{name}.open"));
        let (file, torn) = Appender::open(&path)?;
        Ok((Segment { path, file, begun: Instant::now() }, torn))
    }

    /// Names of the segments that an earlier controller has left open.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open_segments(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.directory.read_dir()? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".open").map(str::to_owned));
        }
        Ok(names)
    }

    /// Appends lines to an open segment.
    ///
    /// # Errors
    /// When the spool is full, or the file system refuses.
    pub fn append(&self, segment: &mut Segment, lines: &[u8]) -> io::Result<()> {
        let waiting = self.shared.waiting.load(Ordering::Relaxed) + segment.file.length();
        if waiting + lines.len() as u64 > self.limit {
            let full = format!("{} bytes wait for the service, and more may not (spool_size)", waiting);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, full));
        }
        segment.file.append(lines)
    }

    /// Closes a segment: it is uploaded under this tag.
    ///
    /// # Errors
    /// When the file system refuses; it then stays open.
    pub fn close(&mut self, segment: &mut Segment, tag: &str) -> io::Result<()> {
        let path = self.directory.join(format!("{:016}-{tag}.log", self.next));
        // Opened before, so that a failure leaves everything as it is.
        let aside = segment.path.with_extension("next");
        let (file, _) = Appender::open(&aside)?;
        fs::rename(&segment.path, &path)?;
        fs::rename(&aside, &segment.path)?;
        self.shared.waiting.fetch_add(segment.file.length(), Ordering::Relaxed);
        self.next += 1;
        (segment.file, segment.begun) = (file, Instant::now());
        if let Some(wake) = &self.wake {
            // When it is full, it is awake already.
            let _ = wake.try_send(());
        }
        Ok(())
    }

    /// Bytes in closed segments, which wait for the service.
    pub fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Lines that were given up since the last call.
    pub fn given_up(&self) -> u64 {
        self.shared.given_up.swap(0, Ordering::Relaxed)
    }

    /// Uploads what can be in a few seconds, and ends the thread.
    pub fn finish(&mut self) {
        self.end(Ending::After(Instant::now() + LAST_ATTEMPTS));
    }

    /// Ends the thread as soon as it can be, for another one to go on with what waits.
    pub fn leave(&mut self) {
        self.end(Ending::Now);
    }

    fn end(&mut self, ending: Ending) {
        // What was said first counts.
        let _ = self.shared.ending.set(ending);
        let _ = self.shared.gives_up.set(Instant::now() + ending.answer_may_take());
        self.wake = None;
        if let Some(thread) = self.uploader.take()
            && thread.join().is_err()
        {
            tracing::error!("flow logs: an uploading thread has failed");
        }
    }
}

/// Opened for nothing: it does not go on uploading beside the next one in its place.
impl Drop for Spool {
    fn drop(&mut self) {
        // One that has ended stays as it is.
        let _ = self.shared.ending.set(Ending::Now);
    }
}

impl Segment {
    /// Bytes in it.
    pub fn length(&self) -> u64 {
        self.file.length()
    }

    /// Whether it begins with this.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn begins_with(&self, head: &str) -> io::Result<bool> {
        let mut begin = Vec::new();
        fs::File::open(&self.path)?.take(head.len() as u64).read_to_end(&mut begin)?;
        Ok(begin == head.as_bytes())
    }

    /// Since it was opened.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// The thread's own state.
struct Uploader {
    directory: PathBuf,
    shared: Arc<Shared>,
    upload: Box<dyn Upload>,
    name: String,
}

impl Uploader {
    fn run(mut self, woken: &Receiver<()>) {
        loop {
            if !self.upload_all(woken) {
                return;
            }
            match woken.recv_timeout(BACKOFF.1) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.upload_all(woken);
                    return;
                }
            }
        }
    }

    /// Everything that waits, until it is gone. False: the thread ends before.
    fn upload_all(&mut self, woken: &Receiver<()>) -> bool {
        loop {
            let waiting = match segments(&self.directory) {
                Ok(waiting) => waiting,
                Err(error) => {
                    tracing::error!(error = crate::error::one_line(&error), "cannot read the spool of flow logs");
                    return true;
                }
            };
            if waiting.is_empty() {
                return true;
            }
            for (_, path) in waiting {
                let leaves = matches!(self.shared.ending.get(), Some(Ending::Now));
                if leaves || !self.upload_one(path, woken) {
                    return false;
                }
            }
        }
    }

    /// False: the thread ends before.
    fn upload_one(&mut self, mut path: PathBuf, woken: &Receiver<()>) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut so_far = SoFar { done: number(name).1, refused: 0 };
        let backoff = ExponentialBuilder::new().with_min_delay(BACKOFF.0).with_max_delay(BACKOFF.1).with_jitter();
        let mut pauses = backoff.without_max_times().build();
        let mut said = false;
        loop {
            let failed = match self.attempt(&mut path, &mut so_far) {
                Ok(()) => {
                    if said {
                        tracing::info!("flow logs: {} takes records again", self.name);
                    }
                    return true;
                }
                Err(failed) => failed,
            };
            if !said {
                tracing::warn!("flow logs: {} does not take records: {failed}; trying again", self.name);
                said = true;
            }
            let pause = pauses.next().unwrap_or(BACKOFF.1);
            self.pause(pause, woken);
            match self.shared.ending.get() {
                Some(Ending::Now) => return false,
                Some(Ending::After(time)) if Instant::now() >= *time => {
                    tracing::warn!("flow logs: what {} has not taken stays in {}", self.name, self.directory.display());
                    return false;
                }
                _ => {}
            }
        }
    }

    /// Less when the thread ends.
    fn pause(&self, pause: Duration, woken: &Receiver<()>) {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            match self.shared.ending.get() {
                Some(Ending::Now) => return,
                Some(Ending::After(_)) => {
                    std::thread::sleep(BACKOFF.0.min(until.saturating_duration_since(Instant::now())));
                    return;
                }
                None => {}
            }
            if woken.recv_deadline(until) == Err(RecvTimeoutError::Disconnected) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn attempt(&mut self, path: &mut PathBuf, so_far: &mut SoFar) -> Result<(), String> {
        let lines = fs::read(&*path).map_err(|error| error.to_string())?;
        let before = so_far.done;
        let sent = self.upload.upload(tag(path), &lines, so_far);
        let refused = std::mem::take(&mut so_far.refused);
        if refused > 0 {
            tracing::error!("flow logs: {} has refused {refused} records", self.name);
            self.shared.given_up.fetch_add(refused, Ordering::Relaxed);
        }
        match sent {
            Ok(()) => {}
            Err(Failed::Again(why)) => {
                if so_far.done > before {
                    note_done(path, so_far.done).map_err(|error| format!("{why}; and {error}"))?;
                }
                return Err(why);
            }
            Err(Failed::Never(why)) => {
                let count = self.upload.records(&lines).saturating_sub(so_far.done as u64);
                tracing::error!("flow logs: {} will never take {count} records: {why}", self.name);
                self.shared.given_up.fetch_add(count, Ordering::Relaxed);
            }
        }
        fs::remove_file(&*path).map_err(|error| format!("cannot delete {}: {error}", path.display()))?;
        self.shared.waiting.fetch_sub(lines.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Takes segments while it is up.
    #[derive(Clone, Debug, Default)]
    struct Service(Arc<Mutex<(bool, Taken)>>);

    /// Tags and lines.
    type Taken = Vec<(String, String)>;

    impl Service {
        fn set_up(&self, up: bool) {
            self.0.lock().expect("no test panics with it").0 = up;
        }

        fn taken(&self) -> Taken {
            self.0.lock().expect("no test panics with it").1.clone()
        }
    }

    impl Upload for Service {
        fn upload(&mut self, tag: &str, lines: &[u8], so_far: &mut SoFar) -> Result<(), Failed> {
            let mut service = self.0.lock().expect("no test panics with it");
            if !service.0 {
                return Err(Failed::Again("down".to_owned()));
            }
            if lines.starts_with(b"halves") && so_far.done == 0 {
                *so_far = SoFar { done: 1, refused: 1 };
                service.0 = false;
                return Err(Failed::Again("down in the middle".to_owned()));
            }
            let lines: Vec<_> = lines.split_inclusive(|byte| *byte == b'\n').skip(so_far.done).collect();
            let lines = lines.concat();
            if lines.starts_with(b"bad") {
                return Err(Failed::Never("bad".to_owned()));
            }
            service.1.push((tag.to_owned(), String::from_utf8_lossy(&lines).into_owned()));
            Ok(())
        }
    }

    fn open(directory: &Path, service: &Service) -> Spool {
        Spool::open(directory, 100, Box::new(service.clone()), "test").expect("a directory")
    }

    #[test]
    fn what_waits_arrives_in_order_when_the_service_is_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let service = Service::default();
        let mut spool = open(directory.path(), &service);
        let (mut segment, _) = spool.segment("current").expect("a file");
        for (line, tag) in [("one\n", "a"), ("bad\n", "b"), ("three\n", "c")] {
            spool.append(&mut segment, line.as_bytes()).expect("room");
            spool.close(&mut segment, tag).expect("room");
        }
        service.set_up(true);
        spool.finish();
        let pair = |tag: &str, lines: &str| (tag.to_owned(), lines.to_owned());
        assert_eq!(service.taken(), [pair("a", "one\n"), pair("c", "three\n")]);
        assert_eq!((spool.given_up(), spool.given_up()), (1, 0));
        assert!(segments(directory.path()).expect("a directory").is_empty());
    }

    #[test]
    fn one_that_leaves_waits_for_nothing_and_another_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let service = Service::default();
        let mut spool = open(directory.path(), &service);
        let (mut segment, _) = spool.segment("current").expect("a file");
        spool.append(&mut segment, b"one\n").expect("room");
        spool.close(&mut segment, "a").expect("room");
        spool.append(&mut segment, b"two\n").expect("room");
        let begun = Instant::now();
        spool.leave();
        assert!(begun.elapsed() < LAST_ATTEMPTS);
        drop((spool, segment));
        let mut spool = open(directory.path(), &service);
        let (mut segment, _) = spool.segment("current").expect("a file");
        spool.close(&mut segment, "b").expect("room");
        service.set_up(true);
        spool.finish();
        let pair = |tag: &str, lines: &str| (tag.to_owned(), lines.to_owned());
        assert_eq!(service.taken(), [pair("a", "one\n"), pair("b", "two\n")]);
    }

    #[test]
    fn what_was_sent_in_part_is_gone_on_with_by_the_next_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let service = Service::default();
        service.set_up(true);
        let mut spool = open(directory.path(), &service);
        let (mut segment, _) = spool.segment("current").expect("a file");
        spool.append(&mut segment, b"halves\nrest\n").expect("room");
        spool.close(&mut segment, "eth0-1.100").expect("room");
        let name = || segments(directory.path()).expect("a directory")[0].1.file_name().map(ToOwned::to_owned);
        while name().is_none_or(|name| name != "0000000000000000+1-eth0-1.100.log") {
            std::thread::sleep(Duration::from_millis(1));
        }
        spool.leave();
        assert_eq!(spool.given_up(), 1);
        service.set_up(true);
        open(directory.path(), &service).finish();
        assert_eq!(service.taken(), [("eth0-1.100".to_owned(), "rest\n".to_owned())]);
    }

    #[test]
    fn more_than_the_limit_is_refused_and_the_next_controller_finds_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let service = Service::default();
        let mut spool = open(directory.path(), &service);
        let (mut segment, _) = spool.segment("current").expect("a file");
        spool.append(&mut segment, &[b'x'; 60]).expect("room");
        spool.close(&mut segment, "a").expect("room");
        spool.append(&mut segment, b"more\n").expect("room");
        let full = spool.append(&mut segment, &[b'x'; 60]).expect_err("no room");
        assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
        drop((spool, segment));
        service.set_up(true);
        let mut spool = open(directory.path(), &service);
        let (mut segment, torn) = spool.segment("current").expect("a file");
        assert_eq!((segment.length(), torn), (5, false));
        spool.close(&mut segment, "b").expect("room");
        spool.finish();
        assert_eq!(service.taken().into_iter().map(|(tag, _)| tag).collect::<Vec<_>>(), ["a", "b"]);
    }
}
