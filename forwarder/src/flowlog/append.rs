//! A file that lines are appended to, all of a piece or none: nothing torn is ever left in it, by a full disk or by a crash.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The file.
#[derive(Debug)]
pub struct Appender {
    file: File,
    length: u64,
}

impl Appender {
    /// Opens a file, or makes it. A last line without an end, which a crash has torn, is removed; `true` says so.
    ///
    /// # Errors
    /// When it cannot be opened, read or shortened.
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        let whole = end_of_last_line(&mut file, length)?;
        if whole != length {
            file.set_len(whole)?;
        }
        Ok((Self { file, length: whole }, whole != length))
    }

    /// Bytes in it.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends lines; when that fails, the file is as it was.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.length)?;
                Err(error)
            }
        }
    }

    /// Has the file system put it on the disk.
    ///
    /// # Errors
    /// When it does not.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Where the last whole line ends.
fn end_of_last_line(file: &mut File, length: u64) -> io::Result<u64> {
    const STEP: u64 = 4096;
    let mut end = length;
    while end > 0 {
        let from = end.saturating_sub(STEP);
        let mut piece = vec![0; (end - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut piece)?;
        if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_torn_last_line_is_removed_on_opening() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        for (left, kept) in [
            ("", ""),
            ("one\n", "one\n"),
            ("one\ntw", "one\n"),
            ("torn", ""),
            (&format!("one\n{}", "x".repeat(10_000)), "one\n"),
        ] {
            fs::write(&path, left).expect("room");
            let (mut file, torn) = Appender::open(&path).expect("a file");
            assert_eq!(torn, left != kept);
            file.append(b"next\n").expect("room");
            assert_eq!(fs::read_to_string(&path).expect("text"), format!("{kept}next\n"));
            assert_eq!(file.length(), kept.len() as u64 + 5);
        }
    }
}
