//! Flow log files, read field by field.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A record by its fields' names.
pub type Record = BTreeMap<String, String>;

/// A destination `file`, and what is in its records.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    format: String,
}

impl Log {
    /// A file with records of this format.
    pub fn new(path: &Path, format: &str) -> Self {
        Self { path: path.to_owned(), format: format.to_owned() }
    }

    /// Its part of the configuration, with windows of one second.
    pub fn config(&self) -> String {
        format!(
            "[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\n[[flow_logs.destination]]\nkind = \"file\"\n\
             path = \"{}\"\nformat = \"{}\"\n",
            self.path.display(),
            self.format
        )
    }

    /// All records.
    ///
    /// # Errors
    /// When the file cannot be read, and when a line has other fields or is torn.
    pub fn read(&self) -> Result<Vec<Record>> {
        read(&self.path, &self.format)
    }
}

/// All records of this format in a file.
///
/// # Errors
/// As [`Log::read`].
pub fn read(path: &Path, format: &str) -> Result<Vec<Record>> {
    let names: Vec<_> = format.split(' ').map(|word| word.trim_matches(['$', '{', '}']).to_owned()).collect();
    let text = std::fs::read_to_string(path).with_context(|| format!("no log at {}", path.display()))?;
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    let record = |line: &str| {
        let fields: Vec<_> = line.split(' ').map(str::to_owned).collect();
        ensure!(fields.len() == names.len(), "{line} has not the fields of {format}");
        Ok(names.iter().cloned().zip(fields).collect())
    };
    text.lines().map(record).collect()
}

/// A field's number; 0 where there is none.
pub fn number(record: &Record, name: &str) -> u64 {
    record[name].parse().unwrap_or(0)
}

/// Packets and bytes of the records that are meant.
pub fn sum(records: &[Record], is_meant: impl Fn(&Record) -> bool) -> (u64, u64) {
    let meant = records.iter().filter(|record| is_meant(record));
    meant.fold((0, 0), |sum, record| (sum.0 + number(record, "packets"), sum.1 + number(record, "bytes")))
}
