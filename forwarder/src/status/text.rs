//! The status as text: what an operator wants to see first stands first, and nothing that did not happen.

use super::{Flows, Interface, Reason, Status};
use crate::flowlog::destination::DestinationStatus;
use crate::measure::latency::ProcessingTime;
use crate::measure::rates::Traffic;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The whole page.
pub fn page(status: &Status) -> String {
    let mut page = String::new();
    head(&mut page, status);
    interfaces(&mut page, status);
    reasons(&mut page, "dropped", &status.drops);
    reasons(&mut page, "left to the host", &status.passed);
    flows(&mut page, &status.flows);
    public_addresses(&mut page, status);
    flow_logs(&mut page, status);
    processing_time(&mut page, &status.processing_time);
    page
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($page:expr, $($argument:tt)*) => { let _ = writeln!($page, $($argument)*); };
}

fn head(page: &mut String, status: &Status) {
    let adopted = if status.adopted { ", took over a running datapath" } else { "" };
    let up = humantime::format_duration(std::time::Duration::from_secs(status.uptime_seconds as u64));
    line!(page, "forwarder {}, instance {}, up {up}{adopted}, epoch {}", status.version, status.instance, status.epoch);
    for (name, why) in &status.not_served {
        line!(page, "{name} is not served: {why}");
    }
}

fn interfaces(page: &mut String, status: &Status) {
    line!(page, "");
    line!(
        page,
        "{:<12} {:<8} {:<8} {:<4} {:>14} {:>14} {:>10} {:>12} {:>10} {:>12}",
        "interface",
        "role",
        "XDP",
        "",
        "packets",
        "bytes",
        "pps 1 s",
        "bit/s 1 s",
        "pps 60 s",
        "bit/s 60 s"
    );
    for Interface { name, role, mode, incoming, outgoing, .. } in &status.interfaces {
        traffic(page, [name, role, mode, "in"], incoming);
        traffic(page, ["", "", "", "out"], outgoing);
    }
    if status.interfaces.len() > 1 {
        traffic(page, ["total", "", "", "in"], &status.total.incoming);
        traffic(page, ["", "", "", "out"], &status.total.outgoing);
    }
}

fn traffic(page: &mut String, [name, role, mode, direction]: [&str; 4], traffic: &Traffic) {
    line!(
        page,
        "{name:<12} {role:<8} {mode:<8} {direction:<4} {:>14} {:>14} {:>10} {:>12} {:>10} {:>12}",
        traffic.packets,
        traffic.bytes,
        short(traffic.last_second.pps),
        short(traffic.last_second.bps),
        short(traffic.last_minute.pps),
        short(traffic.last_minute.bps)
    );
}

fn reasons(page: &mut String, title: &str, reasons: &BTreeMap<String, Reason>) {
    if reasons.is_empty() {
        return;
    }
    line!(page, "");
    line!(page, "{title:<22} {:>14}", "packets");
    let mut sorted: Vec<_> = reasons.iter().collect();
    sorted.sort_by_key(|(_, reason)| std::cmp::Reverse(reason.packets));
    for (name, reason) in sorted {
        line!(page, "{name:<22} {:>14}  {}", reason.packets, reason.text);
    }
}

fn flows(page: &mut String, flows: &Flows) {
    line!(page, "");
    line!(
        page,
        "flows: {} ({} new per second); IPv4 {} of {} ({:.1} %), IPv6 {} of {} ({:.1} %)",
        flows.total,
        short(flows.new_per_second),
        flows.ipv4,
        flows.ipv4_max,
        percent(flows.ipv4, flows.ipv4_max),
        flows.ipv6,
        flows.ipv6_max,
        percent(flows.ipv6, flows.ipv6_max)
    );
    if flows.ipv4_taken > flows.ipv4 || flows.ipv6_taken > flows.ipv6 {
        line!(
            page,
            "  room taken, also by what is on its way out: IPv4 {} ({:.1} %), IPv6 {} ({:.1} %)",
            flows.ipv4_taken,
            percent(flows.ipv4_taken, flows.ipv4_max),
            flows.ipv6_taken,
            percent(flows.ipv6_taken, flows.ipv6_max)
        );
    }
    for (protocol, states) in &flows.states {
        let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        line!(page, "  {protocol:<8} {}", states.join(", "));
    }
}

fn public_addresses(page: &mut String, status: &Status) {
    for public in &status.public_addresses {
        line!(
            page,
            "public address {}: {} flows, {} of {} ports in use",
            public.address,
            public.flows,
            public.ports_used,
            public.ports
        );
    }
}

fn flow_logs(page: &mut String, status: &Status) {
    for DestinationStatus { name, records, lost, spool_bytes, error } in &status.flow_logs {
        let spool = spool_bytes.map_or_else(String::new, |bytes| format!(", {bytes} bytes wait"));
        let error = error.as_ref().map_or_else(String::new, |error| format!("; last error: {error}"));
        line!(page, "flow logs to {name}: {records} records, {lost} lost{spool}{error}");
    }
}

fn processing_time(page: &mut String, time: &ProcessingTime) {
    if time.samples == 0 {
        return;
    }
    let ProcessingTime { samples, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = time;
    line!(page, "");
    line!(
        page,
        "processing time over the last minute: p50 {p50_ns} ns, p90 {p90_ns} ns, p99 {p99_ns} ns, p99.9 {p999_ns} ns, \
         max {max_ns} ns ({samples} frames measured)"
    );
}

fn percent(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / (of.max(1)) as f64
}

/// Three significant figures and a prefix.
pub fn short(value: f64) -> String {
    let (scaled, prefix) = match value {
        value if value >= 1e9 => (value / 1e9, "G"),
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => return format!("{value:.0}"),
    };
    let digits = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$} {prefix}")
}

#[cfg(test)]
mod tests {
    use super::{Flows, flows, short};

    #[test]
    fn a_table_full_of_what_is_on_its_way_out_says_so() {
        let said = |of: &Flows| {
            let mut page = String::new();
            flows(&mut page, of);
            page
        };
        let calm = Flows { ipv4: 10, ipv4_max: 1024, ipv4_taken: 10, ipv6_max: 1024, ..Flows::default() };
        assert!(!said(&calm).contains("room taken"), "{}", said(&calm));
        let full = Flows { ipv4_taken: 1024, ..calm };
        assert!(said(&full).contains("IPv4 1024 (100.0 %), IPv6 0 (0.0 %)\n"), "{}", said(&full));
    }

    #[test]
    fn numbers_have_three_figures() {
        let cases = [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1.00 k"),
            (45_670.0, "45.7 k"),
            (3.21e6, "3.21 M"),
            (1e12, "1000 G"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
