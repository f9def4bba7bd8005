//! A whole run: its tables with all it takes to judge and to repeat them, and the files that it is kept in.

use super::{Table, View, plot};
use crate::machine::{self, Machine};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Moves when older files cannot be read any more.
const SCHEMA: u32 = 1;

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// The command that made it.
    pub command: String,
    /// Commit of the source tree.
    pub commit: String,
    /// When it began, RFC 3339, UTC.
    pub begun: String,
    /// How long it took, seconds.
    pub took_seconds: f64,
    /// What was measured.
    pub machine: Machine,
    /// What was found.
    pub tables: Vec<Table>,
}

impl Report {
    /// Of a run that begins now.
    pub fn begin() -> Self {
        Self {
            schema: SCHEMA,
            command: std::env::args()
                .filter(|word| word != forwarder_kit::supervise::INNER)
                .collect::<Vec<_>>()
                .join(" "),
            commit: machine::commit(),
            begun: rfc3339(SystemTime::now()),
            machine: Machine::read(),
            ..Self::default()
        }
    }

    /// Reads a report's JSON.
    ///
    /// # Errors
    /// When the file cannot be read, is no report, or of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Self = serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))?;
        let schema = report.schema;
        ensure!(schema == SCHEMA, "{} has layout {schema}, this program knows {SCHEMA}", path.display());
        Ok(report)
    }

    /// Where it is kept unless told otherwise: `bench-results/TIME-TABLES`.
    pub fn directory(&self) -> PathBuf {
        let what = self.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>().join("-");
        let time: String = self.begun.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
        Path::new("bench-results").join(format!("{time}-{what}"))
    }

    /// Its JSON.
    ///
    /// # Errors
    /// When a figure cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        let mut json = serde_json::to_string_pretty(self).context("cannot make JSON of the figures")?;
        json.push('\n');
        Ok(json)
    }

    /// As a person reads it.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            let view = View::of(table);
            let _ = writeln!(text, "## {}", view.title);
            for (title, section) in table.sections(&view) {
                if !title.is_empty() {
                    let _ = write!(text, "\n### {title}\n");
                }
                let _ = write!(text, "\n{}\n", section.markdown(view.down, view.across, view.to).trim_end());
            }
            if !view.remark.is_empty() {
                let _ = write!(text, "\n{}\n", view.remark);
            }
            text.push('\n');
        }
        let rounds = self.tables.iter().flat_map(|table| &table.rows).map(|row| row.rounds.len()).max().unwrap_or(0);
        let _ = write!(
            text,
            "Medians of {rounds} interleaved rounds, in parentheses lowest and highest.\n\n- `{}`\n- {}\n",
            self.command,
            self.machine.line()
        );
        for interface in &self.machine.interfaces {
            let _ = writeln!(text, "- {}", interface.line());
        }
        let _ = writeln!(text, "- commit {}, {}, {:.0} s", self.commit, self.begun, self.took_seconds);
        for warning in self.machine.warnings() {
            let _ = writeln!(text, "- **Caution**: {warning}");
        }
        text
    }

    /// Writes `report.json`, `report.md` and, if wanted, a chart for each part of each table.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, directory: &Path, charts: bool) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut files = vec![("report.json".to_owned(), self.json()?), ("report.md".to_owned(), self.markdown())];
        if charts {
            for table in &self.tables {
                let view = View::of(table);
                for (title, section) in table.sections(&view) {
                    let Some(chart) = plot::Chart::of(&section, &view, &title, &self.machine.cpu) else { continue };
                    files.push((format!("{}.svg", file_name(&table.name, &title)), chart.svg()?));
                }
            }
        }
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Of letters, digits and hyphens; without what stands in parentheses, which is a result and another one every time.
fn file_name(table: &str, section: &str) -> String {
    let section: String = section.split('(').map(|part| part.rsplit(')').next().unwrap_or_default()).collect();
    let name: String = format!("{table} {section}").trim().to_lowercase();
    name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// A time in UTC, to the second.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut table = Table::new("local");
        for (device, pps) in [("bare redirect", 4e6), ("forwarder", 3e6)] {
            for flows in ["1000", "100000"] {
                let row = table.row("pps", [("device", device), ("flows", flows)]);
                row.rounds.extend([pps, pps * 1.1, pps * 0.9]);
                row.note("lost 3 in round 1");
            }
        }
        let machine = Machine { cpu: "AMD EPYC".into(), cpus: 2, load: 2.0, ..Machine::default() };
        let (command, commit, begun) = ("forwarder-bench local".into(), "abc".into(), "2026-11-25T05:00:00Z".into());
        Report { schema: SCHEMA, command, commit, begun, took_seconds: 61.5, machine, tables: vec![table] }
    }

    #[test]
    fn json_brings_back_the_same() {
        let directory = std::env::temp_dir().join(format!("forwarder-bench-{}", std::process::id()));
        let written = report();
        written.write(&directory, true).unwrap();
        assert_eq!(Report::read(&directory.join("report.json")).unwrap(), written);
        assert!(directory.join("report.md").exists() && directory.join("local.svg").exists());
        let other = Report { schema: SCHEMA + 1, ..report() };
        fs::write(directory.join("other.json"), other.json().unwrap()).unwrap();
        assert!(Report::read(&directory.join("other.json")).is_err());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn markdown_has_what_it_takes_to_judge_the_figures() {
        let text = report().markdown();
        for part in [
            "## Packets per second",
            "| bare redirect | 4.00 Mpps (3.60-4.40), 250 ns |",
            "Ratio to bare redirect:",
            "| forwarder | 0.75 | 0.75 |",
            "Medians of 3 interleaved rounds",
            "`forwarder-bench local`",
            "AMD EPYC, 2 CPUs",
            "commit abc, 2026-11-25T05:00:00Z, 62 s",
            "not idle: load average 2.00",
            "lost 3 in round 1",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }

    #[test]
    fn times_and_names_can_be_read() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(report().directory(), Path::new("bench-results/20261125T050000-local"));
        assert_eq!(file_name("local", "size 64, direction both"), "local-size-64-direction-both");
        assert_eq!(file_name("latency", "load 50 % (0.162 Mpps), size 64"), "latency-load-50-size-64");
    }
}
