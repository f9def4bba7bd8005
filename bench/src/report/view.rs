//! How each table is shown: which label goes down and which across, what ratios are made to, which rows are charted.

use super::{Row, Table};

/// The way to show a table.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Heading.
    pub title: &'static str,
    /// What a chart of it says above itself; empty: there is none.
    pub chart: &'static str,
    /// Label whose values are the rows of the table and the lines of the chart.
    pub down: &'static str,
    /// Label whose values are the columns, and the chart's x axis.
    pub across: &'static str,
    /// Rows that ratios are made to.
    pub to: &'static [&'static str],
    /// Lines of the chart; none named: all.
    pub charted: &'static [&'static str],
    /// The line that the chart is about.
    pub ours: &'static str,
    /// What a reader must know of all figures, below the table.
    pub remark: &'static str,
}

const VIEWS: [(&str, View); 7] = [
    (
        "local",
        View {
            title: "Packets per second, one core, generator included",
            chart: "Packets per second by number of flows (one core, generator included)",
            down: "device",
            across: "flows",
            to: &["bare redirect", "nft masquerade"],
            charted: &["bare redirect", "forwarder", "kernel forwarding", "nft masquerade"],
            ours: "forwarder",
            remark: "",
        },
    ),
    (
        "controller",
        View {
            title: "The controller meanwhile, and what connections take",
            chart: "",
            down: "measure",
            across: "flows",
            to: &[],
            charted: &[],
            ours: "sweeper",
            remark: "While the packets above were measured, all devices in turn. Sweeper: CPU time of this thread of the controller, \
                     from the end of one pass over the table to the end of another. Resident: `VmRSS`; its own: `RssAnon`. A \
                     connection: what the kernel allots for what grows with the table, free places included, by the \
                     connections that fit.",
        },
    ),
    (
        "prog",
        View {
            title: "The programs alone",
            chart: "Time per packet by number of connections in the table (programs alone)",
            down: "path",
            across: "flows",
            to: &[],
            charted: &[
                "established IPv4 UDP, out",
                "established IPv6 UDP",
                "new flow, IPv4 UDP with NAT",
                "denied by policy",
                "malformed, dropped",
            ],
            ours: "established IPv4 UDP, out",
            remark: "Every packet is of another connection, in random order. Established IPv4: one frame led from connection \
                     to connection by the rewriting. All others: a call for each packet, less what a call costs; they are \
                     overstated by about as much as the check lies above `established IPv4 UDP, out`.",
        },
    ),
    (
        "latency",
        View {
            title: "Round trips",
            chart: "Round trip time by percentile",
            down: "device",
            across: "percentile",
            to: &["nft masquerade"],
            charted: &[],
            ours: "forwarder",
            remark: "",
        },
    ),
    (
        "cps",
        View {
            title: "New flows and connections",
            chart: "",
            down: "device",
            across: "measure",
            to: &["nft masquerade"],
            charted: &[],
            ours: "forwarder",
            remark: "",
        },
    ),
    (
        "flow-logs",
        View {
            title: "Flow logs",
            chart: "",
            down: "device",
            across: "measure",
            to: &[],
            charted: &[],
            ours: "with flow logs",
            remark: "Connections of one packet each way, windows of one second, four records for each; every record was read and \
                     is exact. CPU and memory are the controller's. Anonymous memory is its own; the peak has what it maps of \
                     the flow table as well.",
        },
    ),
    (
        "two-host",
        View {
            title: "From one host to another and back",
            chart: "",
            down: "device",
            across: "figure",
            to: &[],
            charted: &[],
            ours: "forwarder",
            remark: "NDR: the highest rate at which nothing is lost; PDR: no more than 0.5 %; MRR: what arrives at full speed.",
        },
    ),
];

/// For tables that nobody has thought of.
const PLAIN: View = View {
    title: "Figures",
    chart: "Figures",
    down: "device",
    across: "flows",
    to: &[],
    charted: &[],
    ours: "forwarder",
    remark: "",
};

impl View {
    /// The way to show this table.
    pub fn of(table: &Table) -> Self {
        VIEWS.iter().find(|(name, _)| *name == table.name).map_or(PLAIN, |(_, view)| *view)
    }
}

impl Table {
    /// The table in parts that have all labels in common but `down` and `across`, and one unit; each with what they have in
    /// common, written out ("size 64, direction both").
    pub fn sections(&self, view: &View) -> Vec<(String, Table)> {
        let common = |row: &Row| {
            let own = row.labels.iter().filter(|(name, _)| ![view.down, view.across].contains(&name.as_str()));
            own.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
        };
        let mut sections: Vec<(String, Table)> = Vec::new();
        for row in &self.rows {
            let title = common(row);
            let fits = |(there, table): &&mut (String, Table)| {
                *there == title && table.rows.first().is_some_and(|first| first.unit == row.unit)
            };
            match sections.iter_mut().find(fits) {
                Some((_, table)) => table.rows.push(row.clone()),
                None => sections.push((title, Table { name: self.name.clone(), rows: vec![row.clone()] })),
            }
        }
        sections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parted_by_the_labels_that_the_view_does_not_show() {
        let mut table = Table::new("local");
        for (device, size) in [("forwarder", "64"), ("forwarder", "1518"), ("bare redirect", "64")] {
            table.row("pps", [("device", device), ("flows", "1"), ("size", size)]).push(1.0);
        }
        table.row("ns", [("device", "forwarder"), ("flows", "1"), ("size", "64")]).push(1.0);
        let sections = table.sections(&View::of(&table));
        let seen: Vec<_> = sections.iter().map(|(title, part)| (title.as_str(), part.rows.len())).collect();
        assert_eq!(seen, [("size 64", 2), ("size 1518", 1), ("size 64", 1)]);
    }
}
