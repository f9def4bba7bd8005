//! The destination `file`: lines appended to a file that is rotated by size and by time, the old ones compressed and in the
//! end deleted.
//!
//! A rotated file is renamed to `NAME.YYYYmmddTHHMMSSZ[-n]`, then compressed to the same name with `.gz` by a thread of its
//! own and only then deleted, so that a crash leaves one of the two whole; what it left half done is done at the next start.

use super::append::Appender;
use super::text::Lines;
use crate::config::Rotation;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// How long after a failure to rotate the next attempt is made.
const RETRY: Duration = Duration::from_secs(10);

/// The file.
#[derive(Debug)]
pub struct RotatedFile {
    path: PathBuf,
    rotation: Rotation,
    file: Appender,
    begun: Instant,
    not_before: Instant,
    compressing: Option<JoinHandle<()>>,
}

impl RotatedFile {
    /// Opens the file. `true`: its last line was torn by a crash and has been removed.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<(Self, bool)> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let (file, torn) = Appender::open(path)?;
        let now = Instant::now();
        // Its age counts from its last change: better than to forget it with every start.
        let age = fs::metadata(path)?.modified()?.elapsed().unwrap_or_default();
        let begun = if file.length() > 0 { now.checked_sub(age).unwrap_or(now) } else { now };
        let path = path.to_owned();
        let mut rotated = Self { path, rotation, file, begun, not_before: now, compressing: None };
        rotated.tidy();
        Ok((rotated, torn))
    }

    fn is_due(&self) -> bool {
        let full = self.rotation.size.is_some_and(|size| self.file.length() >= u64::from(size));
        let old = self.rotation.every.is_some_and(|every| self.begun.elapsed() >= every);
        (full || old) && self.file.length() > 0 && Instant::now() >= self.not_before
    }

    fn rotate(&mut self) -> io::Result<()> {
        match fs::rename(&self.path, free_name(&self.path)) {
            // Somebody else has taken it away; what is written would go there for ever.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = Appender::open(&self.path)?.0;
        self.begun = Instant::now();
        Ok(())
    }

    /// Compresses what is rotated, and deletes what is too much.
    fn tidy(&mut self) {
        if self.compressing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let (path, rotation) = (self.path.clone(), self.rotation);
        let work = move || {
            if let Err(error) = tidy(&path, rotation) {
                let error = crate::error::one_line(&error);
                tracing::warn!("flow logs: cannot compress or delete what was rotated of {}: {error}", path.display());
            }
        };
        // Without a thread it is done the next time.
        self.compressing = std::thread::Builder::new().name("flow-log-gzip".to_owned()).spawn(work).ok();
    }
}

impl Lines for RotatedFile {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file.append(lines)
    }

    fn poll(&mut self, finish: bool) -> u64 {
        if self.is_due() {
            match self.rotate() {
                Ok(()) => self.tidy(),
                Err(error) => {
                    self.not_before = Instant::now() + RETRY;
                    let error = crate::error::one_line(&error);
                    tracing::error!("flow logs: cannot rotate {}: {error}; it goes on growing", self.path.display());
                }
            }
        }
        if finish && let Some(thread) = self.compressing.take() {
            // A thread that failed has said so.
            let _ = thread.join();
        }
        0
    }
}

/// A name for what is rotated that neither a file nor a compressed one has.
fn free_name(path: &Path) -> PathBuf {
    let stamp = stamp(SystemTime::now());
    let numbered = |n: u32| if n == 0 { format!(".{stamp}") } else { format!(".{stamp}-{n}") };
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let is_free = |suffix: &String| !with(suffix).exists() && !with(&format!("{suffix}.gz")).exists();
    (0..).map(numbered).find(is_free).map(|suffix| with(&suffix)).expect("one of four milliards is free")
}

/// `YYYYmmddTHHMMSSZ`.
fn stamp(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

fn tidy(path: &Path, rotation: Rotation) -> io::Result<()> {
    let mut rotated = rotated(path)?;
    for file in &mut rotated {
        if file.extension() == Some(OsStr::new("part")) {
            fs::remove_file(&*file)?;
        } else if rotation.gzip && file.extension() != Some(OsStr::new("gz")) {
            *file = compress(file)?;
        }
    }
    rotated.retain(|file| file.extension() != Some(OsStr::new("part")));
    let too_many = rotated.len().saturating_sub(rotation.keep as usize);
    rotated.into_iter().take(too_many).try_for_each(fs::remove_file)
}

/// All that was rotated, the oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(&prefix).is_some_and(|rest| {
            let rest = rest.trim_end_matches(".part").trim_end_matches(".gz");
            rest.len() >= 16 && rest.as_bytes()[8] == b'T' && rest.as_bytes()[..8].iter().all(u8::is_ascii_digit)
        });
        if ours {
            found.push(directory.join(name));
        }
    }
    found.sort_by_cached_key(|path| order(path));
    Ok(found)
}

/// Sorts by time, then by number.
fn order(path: &Path) -> (String, u32) {
    let name = path.to_string_lossy();
    let name = name.trim_end_matches(".part").trim_end_matches(".gz");
    match name.rsplit_once("Z-") {
        Some((stamp, number)) => (format!("{stamp}Z"), number.parse().unwrap_or(0)),
        None => (name.to_owned(), 0),
    }
}

fn compress(path: &Path) -> io::Result<PathBuf> {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let (part, done) = (with(".gz.part"), with(".gz"));
    let mut encoder = GzEncoder::new(File::create(&part)?, Compression::fast());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_data()?;
    fs::rename(&part, &done)?;
    fs::remove_file(path)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn rotation(keep: u32, gzip: bool) -> Rotation {
        Rotation { size: Some(10), every: None, keep, gzip }
    }

    fn text_of(path: &Path) -> String {
        let mut text = String::new();
        let file = File::open(path).expect("a file");
        if path.extension() == Some(OsStr::new("gz")) {
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("whole");
        } else {
            (&file).read_to_string(&mut text).expect("text");
        }
        text
    }

    #[test]
    fn nothing_is_lost_over_rotations() {
        for gzip in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("flow.log");
            let (mut file, _) = RotatedFile::open(&path, rotation(100, gzip)).expect("a file");
            for n in 0..8 {
                file.append(format!("line number {n}\n").as_bytes()).expect("room");
                file.poll(false);
            }
            file.poll(true);
            tidy(&path, rotation(100, gzip)).expect("room");
            let all = rotated(&path).expect("a directory");
            assert_eq!(all.len(), 8, "{all:?}");
            assert!(all.iter().all(|path| (path.extension() == Some(OsStr::new("gz"))) == gzip), "{all:?}");
            let text: String = all.iter().map(|path| text_of(path)).collect();
            assert_eq!(text, (0..8).map(|n| format!("line number {n}\n")).collect::<String>());
        }
    }

    #[test]
    fn the_oldest_go_and_what_a_crash_left_half_done_is_done() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flow.log");
        let file = |suffix: &str| directory.path().join(format!("flow.log.{suffix}"));
        for suffix in
            ["20260101T000000Z", "20260102T000000Z-1", "20260102T000000Z", "20260102T000000Z-2.gz.part", "bak"]
        {
            fs::write(file(suffix), suffix).expect("room");
        }
        tidy(&path, rotation(2, true)).expect("room");
        let left: Vec<_> = rotated(&path).expect("a directory");
        assert_eq!(left, [file("20260102T000000Z.gz"), file("20260102T000000Z-1.gz")]);
        assert_eq!(text_of(&left[1]), "20260102T000000Z-1");
        assert!(file("bak").exists(), "not ours");
    }

    #[test]
    fn a_file_is_rotated_by_its_age() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flow.log");
        let every = Rotation { size: None, every: Some(Duration::from_millis(20)), keep: 9, gzip: false };
        let (mut file, _) = RotatedFile::open(&path, every).expect("a file");
        std::thread::sleep(Duration::from_millis(30));
        file.poll(false);
        assert_eq!(rotated(&path).expect("a directory").len(), 0, "an empty file is not rotated");
        file.append(b"line\n").expect("room");
        file.poll(false);
        file.poll(true);
        assert_eq!(rotated(&path).expect("a directory").len(), 1);
    }

    #[test]
    fn a_file_that_somebody_took_away_is_begun_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flow.log");
        let (mut file, _) = RotatedFile::open(&path, rotation(9, false)).expect("a file");
        file.append(b"before it was moved\n").expect("room");
        fs::rename(&path, directory.path().join("taken")).expect("a file");
        file.poll(false);
        file.append(b"after\n").expect("room");
        file.poll(true);
        assert_eq!(text_of(&path), "after\n");
    }
}
