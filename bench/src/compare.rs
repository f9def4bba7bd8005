//! Two runs beside each other: what changed beyond the spread, better or worse.
//!
//! A figure has changed when no round of one run lies within the range of the other's: then even the best of the worse run is
//! worse than the worst of the better one. With five rounds each, chance alone does that once in 126 times (2 of the 252 ways
//! to deal ten rounds out). Rows are matched by table, labels and unit; one with a label in parentheses is there to judge
//! others and not compared.

use crate::report::{Report, Row};
use anyhow::Result;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Fewer rounds than this, and ranges lie apart by chance too often: one in ten times with three.
const ENOUGH_ROUNDS: usize = 4;

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Report of the run before, JSON
    pub before: PathBuf,
    /// Report of the run after, JSON
    pub after: PathBuf,
    /// Also show what has not changed
    #[arg(long)]
    pub all: bool,
    /// Exit with 1 when something became worse
    #[arg(long)]
    pub fail_on_regression: bool,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Same,
    Better,
    Worse,
}

/// A figure of both runs.
struct Pair<'r> {
    table: &'r str,
    before: &'r Row,
    after: &'r Row,
}

/// Two runs, matched.
pub struct Comparison<'r> {
    pairs: Vec<Pair<'r>>,
    /// What is not in both, and what else keeps the runs from being compared, a line each.
    remarks: Vec<String>,
}

impl<'r> Comparison<'r> {
    /// Matches the rows of two runs.
    pub fn of(before: &'r Report, after: &'r Report) -> Self {
        let (old, new) = (rows(before), rows(after));
        let same = |(table, row): &(&str, &Row), (other, there): &(&str, &Row)| {
            table == other && row.unit == there.unit && same_labels(row, there)
        };
        let (mut pairs, mut remarks) = (Vec::new(), differences(before, after));
        for this in &old {
            match new.iter().find(|there| same(this, there)) {
                Some((_, row)) => pairs.push(Pair { table: this.0, before: this.1, after: row }),
                None => remarks.push(format!("only before: {}", name(this.0, this.1))),
            }
        }
        let added = new.iter().filter(|there| !old.iter().any(|this| same(this, there)));
        remarks.extend(added.map(|(table, row)| format!("only after: {}", name(table, row))));
        if pairs.iter().any(|pair| pair.before.rounds.len().min(pair.after.rounds.len()) < ENOUGH_ROUNDS) {
            remarks.push(format!(
                "fewer than {ENOUGH_ROUNDS} rounds: ranges lie apart by chance more often than they should"
            ));
        }
        Self { pairs, remarks }
    }

    /// Whether something became worse.
    pub fn has_regression(&self) -> bool {
        self.pairs.iter().any(|pair| pair.change() == Change::Worse)
    }

    /// As a person reads it; `all` also shows what has not changed.
    pub fn markdown(&self, all: bool) -> String {
        let mut text = String::new();
        let count = |change| self.pairs.iter().filter(|pair| pair.change() == change).count();
        for (change, word) in
            [(Change::Worse, "Worse"), (Change::Better, "Better"), (Change::Same, "Within the spread")]
        {
            let _ = writeln!(text, "{word}: {} of {}", count(change), self.pairs.len());
            if count(change) == 0 || (change == Change::Same && !all) {
                continue;
            }
            text.push_str("\n| what | before | after | change |\n| --- | --: | --: | --: |\n");
            for pair in self.pairs.iter().filter(|pair| pair.change() == change) {
                let _ = writeln!(text, "{}", pair.line());
            }
            text.push('\n');
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "- {remark}");
        }
        text
    }
}

impl Pair<'_> {
    fn change(&self) -> Change {
        let (Some(before), Some(after)) = (self.before.spread(), self.after.spread()) else { return Change::Same };
        let (more, less) = (after.min > before.max, after.max < before.min);
        match (more, less, self.before.more_is_better()) {
            (true, _, true) | (_, true, false) => Change::Better,
            (true, _, false) | (_, true, true) => Change::Worse,
            _ => Change::Same,
        }
    }

    fn line(&self) -> String {
        let change =
            self.after.ratio(self.before).map_or(String::new(), |ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0));
        let name = name(self.table, self.before);
        format!("| {name} | {} | {} | {change} |", self.before.figure(), self.after.figure())
    }
}

/// What a label has in parentheses behind it is a result of that run: "90 % (0.512 Mpps)".
fn same_labels(row: &Row, there: &Row) -> bool {
    let named = |row: &Row| -> Vec<_> {
        let labels = row.labels.iter().map(|(name, value)| (name.clone(), value.split(" (").next().map(str::to_owned)));
        labels.collect()
    };
    named(row) == named(there)
}

/// The rows that are compared, with their tables' names.
fn rows(report: &Report) -> Vec<(&str, &Row)> {
    let all = report.tables.iter().flat_map(|table| table.rows.iter().map(|row| (table.name.as_str(), row)));
    all.filter(|(_, row)| !row.labels.values().any(|value| value.starts_with('('))).collect()
}

fn name(table: &str, row: &Row) -> String {
    let labels: Vec<_> = row.labels.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!("{table}: {}", labels.join(", "))
}

/// Where the runs were not made on the same machine.
fn differences(before: &Report, after: &Report) -> Vec<String> {
    let (old, new) = (&before.machine, &after.machine);
    let mut remarks = Vec::new();
    for (what, old, new) in [
        ("CPU", &old.cpu, &new.cpu),
        ("CPUs", &old.cpus.to_string(), &new.cpus.to_string()),
        ("kernel", &old.kernel, &new.kernel),
        ("machine", &old.product, &new.product),
    ] {
        if old != new {
            remarks.push(format!("not the same {what}: {old} before, {new} after"));
        }
    }
    for (when, report) in [("before", before), ("after", after)] {
        remarks.extend(report.machine.warnings().into_iter().map(|warning| format!("{when}: {warning}")));
    }
    remarks
}

/// Prints the comparison. True: all is well, or nobody asked.
///
/// # Errors
/// When a report cannot be read.
pub fn run(options: &Options) -> Result<bool> {
    let (before, after) = (Report::read(&options.before)?, Report::read(&options.after)?);
    let comparison = Comparison::of(&before, &after);
    print!("{}", comparison.markdown(options.all));
    Ok(!(options.fail_on_regression && comparison.has_regression()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Table;

    fn report(unit: &str, rows: &[(&str, [f64; 4])]) -> Report {
        let mut table = Table::new("local");
        for (device, rounds) in rows {
            table.row(unit, [("device", *device)]).rounds.extend(rounds);
        }
        Report { tables: vec![table], ..Report::default() }
    }

    fn change(unit: &str, before: [f64; 4], after: [f64; 4]) -> Change {
        let (before, after) = (report(unit, &[("a", before)]), report(unit, &[("a", after)]));
        let comparison = Comparison::of(&before, &after);
        assert_eq!(comparison.has_regression(), comparison.pairs[0].change() == Change::Worse);
        comparison.pairs[0].change()
    }

    #[test]
    fn only_ranges_that_lie_apart_are_a_change() {
        let rounds = [10.0, 11.0, 12.0, 13.0];
        assert_eq!(change("pps", rounds, [13.0, 14.0, 15.0, 16.0]), Change::Same);
        assert_eq!(change("pps", rounds, [13.1, 14.0, 15.0, 16.0]), Change::Better);
        assert_eq!(change("pps", rounds, [7.0, 8.0, 9.0, 9.9]), Change::Worse);
    }

    #[test]
    fn less_time_is_better_and_more_is_worse() {
        assert_eq!(change("ns", [10.0; 4], [9.0; 4]), Change::Better);
        assert_eq!(change("ns", [10.0; 4], [11.0; 4]), Change::Worse);
        assert_eq!(change("ns", [10.0; 4], [10.0; 4]), Change::Same);
    }

    #[test]
    fn what_is_in_one_run_only_is_said_and_references_are_left_out() {
        let before = report("ns", &[("a", [1.0; 4]), ("b", [1.0; 4]), ("(harness)", [1.0; 4])]);
        let after = report("ns", &[("c", [1.0; 4]), ("b", [2.0; 4]), ("(harness)", [9.0; 4])]);
        let text = Comparison::of(&before, &after).markdown(false);
        for part in ["Worse: 1 of 1", "+100.0 %", "only before: local: device a", "only after: local: device c"] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        assert!(!text.contains("harness"), "{text}");
    }

    #[test]
    fn what_a_label_has_in_parentheses_behind_it_does_not_part_rows() {
        let of = |load: &str| {
            let mut table = Table::new("latency");
            table.row("us", [("device", "forwarder"), ("load", load)]).rounds.extend([1.0; 4]);
            Report { tables: vec![table], ..Report::default() }
        };
        let (before, after, other) = (of("90 % (0.512 Mpps)"), of("90 % (0.498 Mpps)"), of("50 % (0.512 Mpps)"));
        assert_eq!(Comparison::of(&before, &after).pairs.len(), 1);
        assert_eq!(Comparison::of(&before, &other).pairs.len(), 0);
    }

    #[test]
    fn another_machine_and_too_few_rounds_are_remarked() {
        let before = report("ns", &[("a", [1.0; 4])]);
        let mut after = before.clone();
        after.machine.kernel = "6.1".into();
        after.tables[0].rows[0].rounds.truncate(2);
        let text = Comparison::of(&before, &after).markdown(true);
        assert!(
            text.contains("not the same kernel:  before, 6.1 after") && text.contains("fewer than 4 rounds"),
            "{text}"
        );
        assert!(text.contains("Within the spread: 1 of 1\n\n| what"), "{text}");
    }
}
