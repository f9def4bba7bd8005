//! The biggest talkers as rows of words, the same for standard output and for the screen.

use crate::cli::Sort;
use crate::flows::top::{Host, Rates, Talker, Top};
use crate::status::text::short;
use std::cmp::Reverse;
use std::fmt::{self, Display, Formatter};

/// What is listed, and what the first have most of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Inside hosts, not connections.
    pub hosts: bool,
    /// What the first have most of.
    pub sort: Sort,
}

impl Order {
    /// Only hosts have connections.
    pub fn new(hosts: bool, sort: Sort) -> Self {
        Self { hosts: hosts || sort == Sort::Connections, sort }
    }
}

/// A table; the columns from `numbers` on are flush right.
#[derive(Debug)]
pub struct Listing {
    /// What the columns are.
    pub head: Vec<&'static str>,
    /// First column of numbers.
    pub numbers: usize,
    /// As many words as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// Brings what there is of either kind into order, and leaves so many. Connections without an order of their own, when hosts
/// are sorted by them, are in order of their rates.
pub fn sort(top: &mut Top, order: Order, most: usize) {
    // In thousandths, so that less than one packet a second is more than none.
    let size = |one: &Rates, other: &Rates| match order.sort {
        Sort::Packets => ((one.packets_per_second + other.packets_per_second) * 1000.0) as u64,
        _ => ((one.bits_per_second + other.bits_per_second) * 1000.0) as u64,
    };
    // What is equally big keeps its place from one second to the next.
    top.talkers.sort_by_cached_key(|Talker { originator, responder, original, protocol, .. }| {
        (Reverse(size(originator, responder)), original.source.clone(), original.destination.clone(), protocol.clone())
    });
    top.hosts.sort_by_cached_key(|Host { address, connections, sent, received }| {
        let connections = if order.sort == Sort::Connections { *connections } else { 0 };
        (Reverse(connections), Reverse(size(sent, received)), *address)
    });
    top.talkers.truncate(most);
    top.hosts.truncate(most);
}

/// One line about all of it.
pub fn summary(top: &Top) -> String {
    let rates =
        |rates: &Rates| format!("{}bit/s {}packet/s", spaced(rates.bits_per_second), spaced(rates.packets_per_second));
    format!(
        "{} connections, from their originators {}, to them {}, over {:.1} s",
        top.connections,
        rates(&top.originator),
        rates(&top.responder),
        top.seconds
    )
}

/// With the unit right behind the prefix, or behind a blank.
fn spaced(value: f64) -> String {
    let short = short(value);
    if short.contains(' ') { short } else { short + " " }
}

/// The rows. Where there is room for all, both bits and packets; else what they are sorted by.
pub fn listing(top: &Top, order: Order, all: bool) -> Listing {
    let (bits, packets) = (all || order.sort != Sort::Packets, all || order.sort == Sort::Packets);
    let numbers = |one: &Rates, other: &Rates| {
        let of = |is_shown: bool, of: fn(&Rates) -> f64| {
            [one, other].into_iter().filter(move |_| is_shown).map(move |rates| short(of(rates)))
        };
        of(bits, |rates| rates.bits_per_second).chain(of(packets, |rates| rates.packets_per_second)).collect::<Vec<_>>()
    };
    let heads = [("bit/s sent", bits), ("received", bits), ("packet/s sent", packets), ("received", packets)];
    let heads = heads.into_iter().filter_map(|(head, is_shown)| is_shown.then_some(head));
    if order.hosts {
        let row = |host: &Host| {
            let own = [host.address.to_string(), host.connections.to_string()];
            own.into_iter().chain(numbers(&host.sent, &host.received)).collect()
        };
        let head = ["inside host", "connections"].into_iter().chain(heads).collect();
        return Listing { head, numbers: 1, rows: top.hosts.iter().map(row).collect() };
    }
    let row = |talker: &Talker| {
        let Talker { protocol, original, .. } = talker;
        let own = [protocol.clone(), original.source.clone(), original.destination.clone(), leaves_as(talker)];
        own.into_iter().chain(numbers(&talker.originator, &talker.responder)).collect()
    };
    let head = ["", "client", "remote", "as"].into_iter().chain(heads).collect();
    Listing { head, numbers: 4, rows: top.talkers.iter().map(row).collect() }
}

/// What it leaves as, where that differs: its source, and behind an arrow its destination.
fn leaves_as(Talker { original, translated, .. }: &Talker) -> String {
    let source = (translated.source != original.source).then(|| translated.source.clone());
    let destination =
        (translated.destination != original.destination).then(|| format!("-> {}", translated.destination));
    let words: Vec<_> = source.into_iter().chain(destination).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

impl Listing {
    /// How wide each column is.
    pub fn widths(&self) -> Vec<usize> {
        let rows = |at: usize| self.rows.iter().map(move |row| row[at].chars().count());
        self.head.iter().enumerate().map(|(at, head)| rows(at).max().unwrap_or(0).max(head.chars().count())).collect()
    }
}

impl Display for Listing {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let line = |words: &mut dyn Iterator<Item = &str>| {
            let words = words.zip(&widths).enumerate().map(|(at, (word, width))| {
                if at < self.numbers { format!("{word:<width$}") } else { format!("{word:>width$}") }
            });
            words.collect::<Vec<_>>().join("  ")
        };
        writeln!(formatter, "{}", line(&mut self.head.iter().copied()))?;
        self.rows.iter().try_for_each(|row| writeln!(formatter, "{}", line(&mut row.iter().map(String::as_str))))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::flows::list::Tuple;

    fn rates(bits_per_second: f64, packets_per_second: f64) -> Rates {
        Rates { bits_per_second, packets_per_second }
    }

    fn ends(source: &str, destination: &str) -> Tuple {
        Tuple { source: source.to_owned(), destination: destination.to_owned() }
    }

    pub fn example() -> Top {
        let talker = |original, translated, originator| Talker {
            protocol: "udp".to_owned(),
            original,
            translated,
            state: "established".to_owned(),
            originator,
            responder: rates(100.0, 1.0),
        };
        let host = |address: &str, connections, sent| Host {
            address: address.parse().expect("an address"),
            connections,
            sent,
            received: rates(100.0, 1.0),
        };
        Top {
            seconds: 1.0,
            connections: 13,
            originator: rates(9e6, 5000.0),
            responder: rates(200.0, 2.0),
            talkers: vec![
                talker(
                    ends("192.0.2.7:5000", "198.51.100.10:443"),
                    ends("192.0.2.7:5000", "10.0.1.21:8443"),
                    rates(1e6, 4000.0),
                ),
                talker(
                    ends("10.0.1.10:40000", "203.0.113.10:53"),
                    ends("198.51.100.10:1024", "203.0.113.10:53"),
                    rates(8e6, 1000.0),
                ),
            ],
            hosts: vec![host("10.0.1.21", 12, rates(1e6, 4000.0)), host("10.0.1.10", 1, rates(8e6, 1000.0))],
        }
    }

    fn first(hosts: bool, order: Sort) -> String {
        let mut top = example();
        let order = Order::new(hosts, order);
        sort(&mut top, order, 1);
        let listing = listing(&top, order, true);
        assert_eq!(listing.rows.len(), 1);
        listing.rows[0].join(" ")
    }

    #[test]
    fn the_biggest_stands_first() {
        let udp = "udp 10.0.1.10:40000 203.0.113.10:53 198.51.100.10:1024 8.00 M 100 1.00 k 1";
        assert_eq!(first(false, Sort::Rate), udp);
        let forwarded = "udp 192.0.2.7:5000 198.51.100.10:443 -> 10.0.1.21:8443 1.00 M 100 4.00 k 1";
        assert_eq!(first(false, Sort::Packets), forwarded);
        assert_eq!(first(true, Sort::Rate), "10.0.1.10 1 8.00 M 100 1.00 k 1");
        assert_eq!(first(false, Sort::Connections), "10.0.1.21 12 1.00 M 100 4.00 k 1");
    }

    #[test]
    fn columns_are_as_wide_as_their_words() {
        let (mut top, order) = (example(), Order::new(true, Sort::Rate));
        sort(&mut top, order, 9);
        let text = listing(&top, order, false).to_string();
        let expected = "inside host  connections  bit/s sent  received\n\
                        10.0.1.10              1      8.00 M       100\n\
                        10.0.1.21             12      1.00 M       100\n";
        assert_eq!(text, expected);
        assert_eq!(
            summary(&top),
            "13 connections, from their originators 9.00 Mbit/s 5.00 kpacket/s, to them 200 bit/s 2 packet/s, over 1.0 s"
        );
    }
}
