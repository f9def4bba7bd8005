//! What is on its way: a byte per destination, on disk, that says whether records have left the ledger and have not all
//! arrived. A controller that finds it set was preceded by one that was killed in between, and declares the loss.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

/// One destination's byte, shared by those who hand over and the one who writes.
#[derive(Debug)]
pub struct Progress {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the byte says.
    marked: bool,
    /// Marks made; only when the latest is given back, nothing is on its way.
    marks: u64,
}

impl Progress {
    /// Opens the file, or makes it. `true`: records were on their way when the last controller ended.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut byte = [0];
        let was_marked = file.read_at(&mut byte, 0)? == 1 && byte == [1];
        Ok((Self { file, state: Mutex::new(State { marked: was_marked, marks: 0 }) }, was_marked))
    }

    /// Before anything leaves the ledger. Returns the number to give back when all of it has arrived.
    pub fn mark(&self) -> u64 {
        let mut state = self.state();
        state.marks += 1;
        if !state.marked {
            state.marked = true;
            self.write(1);
        }
        state.marks
    }

    /// All that was handed over up to a mark has arrived. A mark made since stays.
    pub fn clear(&self, number: u64) {
        let mut state = self.state();
        if state.marks == number && state.marked {
            state.marked = false;
            self.write(0);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    fn write(&self, byte: u8) {
        if let Err(error) = self.file.write_all_at(&[byte], 0) {
            tracing::warn!(error = crate::error::one_line(&error), "cannot note the progress of flow logs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_known_to_the_next_controller() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("progress");
        let open = || Progress::open(&path).expect("a file");
        let (progress, was_marked) = open();
        assert!(!was_marked);
        let first = progress.mark();
        assert!(open().1);
        let second = progress.mark();
        progress.clear(first);
        assert!(open().1, "the second is still on its way");
        progress.clear(second);
        assert!(!open().1);
    }
}
