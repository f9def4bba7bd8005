//! Flow logs over a wall clock that is set back and forward: nothing double, nothing lost, and each record has the time that
//! it was by the clock.

use anyhow::{Context, Result, ensure};

/// Echo requests that the guest sends through the appliance, before the clock is set and while it is.
const PINGS: u64 = 3 + 12;
/// IPv4 packet of one, bytes.
const BYTES: u64 = 84;
/// Interface, source and destination of an echo as it comes and goes: where a packet has another's address, AWS shows the
/// interface's own.
const PLACES: [[&str; 3]; 4] = [
    ["in0", "10.0.0.2", "10.0.0.1"],
    ["out0", "198.51.100.1", "198.51.100.2"],
    ["out0", "198.51.100.2", "198.51.100.1"],
    ["in0", "10.0.0.1", "10.0.0.2"],
];

/// Success when every echo is in the records once, at all three times, and the jumps were told.
pub(super) fn judge(console: &[String]) -> Result<()> {
    let lines = |prefix: &'static str| console.iter().filter_map(move |line| line.strip_prefix(prefix));
    let now: i64 = lines("CLOCK ").next().context("clock test: no CLOCK line")?.parse()?;
    for jump in ["the clock was set back by", "the clock was set forward by"] {
        ensure!(console.iter().any(|line| line.contains(jump)), "clock test: nobody says \"{jump}\"");
    }
    let records: Vec<Vec<&str>> = lines("RECORD ").map(|record| record.split(' ').collect()).collect();
    ensure!(records.iter().all(|record| record.len() == 14), "clock test: a record is torn");
    ensure!(records.iter().all(|record| record[13] != "SKIPDATA"), "clock test: something is said to be lost");
    let mut hours = [false; 3];
    for place in PLACES {
        let (mut packets, mut bytes) = (0, 0);
        for record in records.iter().filter(|record| record[2..5] == place && record[7] == "1") {
            packets += record[8].parse::<u64>()?;
            bytes += record[9].parse::<u64>()?;
            let (start, end) = (record[10].parse::<i64>()?, record[11].parse::<i64>()?);
            ensure!(start <= end, "clock test: {record:?} ends before it begins");
            let hour = (start - now + 1800).div_euclid(3600) + 1;
            let seen = usize::try_from(hour).ok().and_then(|hour| hours.get_mut(hour));
            *seen.with_context(|| format!("clock test: {record:?} is of no time that it was"))? = true;
        }
        let found = (packets, bytes);
        ensure!(found == (PINGS, PINGS * BYTES), "clock test: {place:?} has {found:?} of {PINGS} echoes");
    }
    ensure!(hours == [true; 3], "clock test: of the hours before, now and after only {hours:?} have records");
    println!("clock test: {} records of {PINGS} echoes over two jumps, exact", records.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn console(counts: [u64; 3]) -> Vec<String> {
        let mut lines = vec![format!("CLOCK {NOW}"), "WARN the clock was set back by 3600.0 s".to_owned()];
        lines.push("WARN the clock was set forward by 7200.0 s".to_owned());
        for [interface, source, destination] in PLACES {
            for (count, at) in counts.into_iter().zip([NOW - 3598, NOW - 2, NOW + 3604]) {
                let bytes = count * BYTES;
                lines.push(format!(
                    "RECORD 2 unknown {interface} {source} {destination} 0 0 1 {count} {bytes} {at} {at} ACCEPT OK"
                ));
            }
        }
        lines
    }

    #[test]
    fn every_echo_once_passes_and_nothing_else() {
        judge(&console([4, 5, 6])).expect("fifteen echoes at three times");
        for wrong in [[4, 5, 7], [4, 5, 5]] {
            assert!(judge(&console(wrong)).is_err(), "{wrong:?}");
        }
        let without =
            |what: &str| console([4, 5, 6]).into_iter().filter(|line| !line.contains(what)).collect::<Vec<_>>();
        for what in ["CLOCK", "back by", "forward by", "RECORD", &(NOW + 3604).to_string()] {
            assert!(judge(&without(what)).is_err(), "without {what}");
        }
        let replaced =
            |from: &str, to: &str| console([4, 5, 6]).iter().map(|line| line.replace(from, to)).collect::<Vec<_>>();
        assert!(judge(&replaced("ACCEPT OK", "- SKIPDATA")).is_err());
        assert!(judge(&replaced(&(NOW - 2).to_string(), &(NOW - 90_000).to_string())).is_err());
    }
}
