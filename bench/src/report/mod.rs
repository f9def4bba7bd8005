//! What a run found, as values: rows of rounds with labels, in tables, in a report with all it takes to judge them.
//!
//! Every measurement hands over a [`Table`]. How a report is written, is told apart: `document` (the files and the whole
//! text), `view` (what is shown how), `markdown` (one table), `plot` (charts). Nothing here measures.
//!
//! # Invariants
//! - A row keeps every round it was measured in; medians and spreads are derived where they are shown, never stored.
//! - Two rows of a table differ in their labels: labels are what `compare` finds a row by.
//! - A row with a label in parentheses is there to judge the others by; it is neither compared nor charted.

mod document;
mod markdown;
mod plot;
mod view;

pub use document::Report;
pub use view::View;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One figure, measured in several rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured: device, flows, size, direction, family, load, percentile, …
    pub labels: BTreeMap<String, String>,
    /// Unit of the rounds: "pps", "ns", "us", "1/s", "B", "MiB", "% of a core", "ratio".
    pub unit: String,
    /// One figure a round, in the order they were taken, in `unit`.
    pub rounds: Vec<f64>,
    /// What a reader must know to trust the figure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How far the rounds of a row lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The lowest round, in the row's unit.
    pub min: f64,
    /// The highest round, in the row's unit.
    pub max: f64,
    /// `(max - min) / median`, without unit; 0 where the median is 0.
    pub relative: f64,
}

impl Row {
    /// A row without rounds yet.
    pub fn new<'a>(unit: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { labels, unit: unit.to_owned(), rounds: Vec::new(), notes: Vec::new() }
    }

    /// The same with one label more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.labels.insert(name.to_owned(), value.to_string());
        self
    }

    /// Adds what a round found, in the row's unit.
    pub fn push(&mut self, figure: f64) {
        self.rounds.push(figure);
    }

    /// Adds a note, unless the row has it already.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The value of a label; empty where the row has none of this name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// The middle round, or the mean of the two in the middle, in the row's unit. `None` without rounds.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let high = *sorted.get(middle)?;
        if sorted.len() % 2 == 1 {
            return Some(high);
        }
        let low = *sorted.get(middle - 1)?;
        Some(f64::midpoint(low, high))
    }

    /// How far the rounds lie apart. `None` without rounds.
    pub fn spread(&self) -> Option<Spread> {
        let median = self.median()?;
        let min = self.rounds.iter().copied().min_by(f64::total_cmp)?;
        let max = self.rounds.iter().copied().max_by(f64::total_cmp)?;
        let relative = if median == 0.0 { 0.0 } else { (max - min) / median.abs() };
        Some(Spread { min, max, relative })
    }

    /// Median of this row ÷ median of the other, without unit. `None` where either has none, or the other's is 0.
    pub fn ratio(&self, to: &Self) -> Option<f64> {
        let (median, to) = (self.median()?, to.median()?);
        (to != 0.0).then(|| median / to)
    }

    /// Median and range as a person reads them; for packet rates also the time that one takes.
    pub fn figure(&self) -> String {
        let (Some(median), Some(spread)) = (self.median(), self.spread()) else { return String::new() };
        match self.unit.as_str() {
            "pps" => {
                let [median_mpps, min, max] = [median, spread.min, spread.max].map(|pps| pps / 1e6);
                format!("{median_mpps:.2} Mpps ({min:.2}-{max:.2}), {:.0} ns", 1e9 / median)
            }
            "ratio" => format!("{median:.3} ({:.3}-{:.3})", spread.min, spread.max),
            "ns" => format!("{median:.0} ns ({:.0}-{:.0})", spread.min, spread.max),
            unit => format!("{median:.1} {unit} ({:.1}-{:.1})", spread.min, spread.max),
        }
    }

    /// Whether more of it is better: rates are, times and sizes are not.
    pub fn more_is_better(&self) -> bool {
        matches!(self.unit.as_str(), "pps" | "1/s" | "bit/s" | "flows" | "ratio")
    }
}

/// What one kind of measurement found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Which: "local", "controller", "cps", "flow-logs", "latency", "prog", "two-host".
    pub name: String,
    /// The figures, in the order they are shown.
    pub rows: Vec<Row>,
}

impl Table {
    /// A table without rows yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rows: Vec::new() }
    }

    /// The row with these labels and this unit, added where there is none: what rounds are pushed to.
    pub fn row<'a>(&mut self, unit: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> &mut Row {
        let row = Row::new(unit, labels);
        let index = match self.rows.iter().position(|there| there.labels == row.labels && there.unit == row.unit) {
            Some(index) => index,
            None => {
                self.rows.push(row);
                self.rows.len() - 1
            }
        };
        &mut self.rows[index]
    }

    /// The values a label takes, in the order they first appear.
    pub fn values(&self, label: &str) -> Vec<&str> {
        let mut values = Vec::new();
        for value in self.rows.iter().filter_map(|row| row.labels.get(label)) {
            if !values.contains(&value.as_str()) {
                values.push(value.as_str());
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rounds: &[f64]) -> Row {
        Row { rounds: rounds.to_vec(), ..Row::new("ns", [("device", "a")]) }
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(row(&[]).median(), None);
        assert_eq!(row(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(row(&[4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
    }

    #[test]
    fn the_spread_is_from_lowest_to_highest_by_the_median() {
        assert_eq!(row(&[]).spread(), None);
        assert_eq!(row(&[3.0, 1.0, 2.0]).spread(), Some(Spread { min: 1.0, max: 3.0, relative: 1.0 }));
        assert_eq!(row(&[0.0, 0.0]).spread(), Some(Spread { min: 0.0, max: 0.0, relative: 0.0 }));
    }

    #[test]
    fn a_ratio_needs_both_and_no_zero_below() {
        assert_eq!(row(&[3.0]).ratio(&row(&[2.0])), Some(1.5));
        assert_eq!(row(&[3.0]).ratio(&row(&[0.0])), None);
        assert_eq!(row(&[]).ratio(&row(&[2.0])), None);
    }

    #[test]
    fn rounds_of_the_same_labels_meet_in_one_row() {
        let mut table = Table::new("local");
        for figure in [1.0, 2.0] {
            table.row("ns", [("device", "a"), ("flows", "1")]).push(figure);
            table.row("ns", [("device", "a"), ("flows", "2")]).push(figure);
        }
        assert_eq!(table.rows.iter().map(|row| row.rounds.len()).collect::<Vec<_>>(), [2, 2]);
        assert_eq!((table.values("device"), table.values("flows")), (vec!["a"], vec!["1", "2"]));
    }

    #[test]
    fn figures_have_units_that_can_be_said() {
        assert_eq!(row(&[70.4, 69.0, 80.0]).figure(), "70 ns (69-80)");
        assert_eq!(Row { unit: "pps".into(), ..row(&[2e6]) }.figure(), "2.00 Mpps (2.00-2.00), 500 ns");
        assert_eq!(Row { unit: "us".into(), ..row(&[2.0]) }.figure(), "2.0 us (2.0-2.0)");
    }
}
