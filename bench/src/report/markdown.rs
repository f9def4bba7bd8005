//! A table as a person reads it: one label down, one across, medians with their spread, and ratios to some of the rows.

use super::{Row, Table};
use std::fmt::Write as _;

impl Table {
    /// Markdown with the values of label `down` as rows and of `across` as columns; behind each median how far its rounds lie
    /// apart. Ratios follow to each of the rows in `to` that is there.
    pub fn markdown(&self, down: &str, across: &str, to: &[&str]) -> String {
        let mut text = self.block(down, across, |row| row.map_or(String::new(), Row::figure));
        for reference in to.iter().filter(|name| self.values(down).contains(name)) {
            let ratio = |row: Option<&Row>| {
                let other = row.and_then(|row| self.find(down, reference, across, row.label(across)));
                row.zip(other).and_then(|(row, other)| row.ratio(other)).map_or(String::new(), |r| format!("{r:.2}"))
            };
            let _ = write!(text, "\nRatio to {reference}:\n\n{}", self.block(down, across, ratio));
        }
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            let _ =
                write!(text, "\n{}, {}: {}", row.label(down), heading(row.label(across), across), row.notes.join("; "));
        }
        text
    }

    fn find(&self, down: &str, this: &str, across: &str, that: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label(down) == this && row.label(across) == that)
    }

    fn block(&self, down: &str, across: &str, cell: impl Fn(Option<&Row>) -> String) -> String {
        let (names, columns) = (self.values(down), self.values(across));
        let mut text = format!(
            "| {down} | {} |\n",
            columns.iter().map(|name| heading(name, across)).collect::<Vec<_>>().join(" | ")
        );
        let _ = writeln!(text, "| --- |{}", " --: |".repeat(columns.len()));
        for name in names {
            let cells: Vec<_> = columns.iter().map(|column| cell(self.find(down, name, across, column))).collect();
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        text
    }
}

/// A number alone says nothing of what it counts.
fn heading(name: &str, across: &str) -> String {
    if name.parse::<f64>().is_ok() { format!("{name} {across}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_stand_in_a_table() {
        let mut table = Table::new("local");
        for (device, pps) in [("bare", [4e6, 5e6, 3e6]), ("forwarder", [2e6, 3e6, 1e6])] {
            pps.into_iter().for_each(|pps| table.row("pps", [("device", device), ("flows", "1000")]).push(pps));
        }
        let text = table.markdown("device", "flows", &["bare", "absent"]);
        assert!(text.contains("| bare | 4.00 Mpps (3.00-5.00), 250 ns |"), "{text}");
        assert!(
            text.contains(
                "Ratio to bare:\n\n| device | 1000 flows |\n| --- | --: |\n| bare | 1.00 |\n| forwarder | 0.50 |"
            ),
            "{text}"
        );
        assert!(!text.contains("absent"), "{text}");
    }
}
