//! Ten seconds for a person who watches: forwarder, kernel NAT and the bare redirect, in words.

use crate::lab::Device;
use crate::local;
use crate::report::Table;
use anyhow::{Context, Result};
use std::fmt::Write as _;

/// Flows, as many as a small office has.
const FLOWS: u32 = 10_000;

/// Measures, and says what it found.
///
/// # Errors
/// When something cannot be set up.
pub fn run() -> Result<String> {
    let headline = local::Options::headline();
    words(&local::rates(&local::Options { flows: vec![FLOWS], quick: false, devices: DEVICES.to_vec(), ..headline })?)
}

const DEVICES: [Device; 3] = [Device::Bare, Device::Forwarder, Device::Nft];

fn words(table: &Table) -> Result<String> {
    let rate = |device: Device| {
        let row = table.rows.iter().find(|row| row.label("device") == device.name());
        row.and_then(|row| row.median()).with_context(|| format!("nothing came through {}", device.name()))
    };
    let [bare, forwarder, nft] = DEVICES.map(rate);
    let (bare, forwarder, nft) = (bare?, forwarder?, nft?);
    let mut text = format!("packets of 64 bytes in {FLOWS} flows, one core that makes, forwards and counts them\n");
    for (name, pps) in [("bare redirect, the limit", bare), ("forwarder", forwarder), ("kernel NAT (nftables)", nft)] {
        let bar = "#".repeat((pps / bare * 40.0).round() as usize);
        let _ = writeln!(text, "   {name:<26} {:>6.2} Mpps {:>6.0} ns  {bar}", pps / 1e6, 1e9 / pps);
    }
    let (times, share) = (forwarder / nft, 100.0 * forwarder / bare);
    let _ = writeln!(text, "   forwarder is {times:.1} times as fast as kernel NAT, at {share:.0} % of the limit");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_many_times_as_fast() {
        let mut table = Table::new("local");
        for (device, pps) in DEVICES.into_iter().zip([4e6, 3.2e6, 0.8e6]) {
            table.row("pps", [("device", device.name()), ("flows", "10000")]).push(pps);
        }
        let text = words(&table).unwrap();
        assert!(text.contains("4.0 times as fast as kernel NAT, at 80 % of the limit"), "{text}");
        assert!(text.contains("0.80 Mpps   1250 ns  ########\n"), "{text}");
        table.rows.pop();
        assert!(words(&table).is_err());
    }
}
