//! Firewall rules for the bed: what a new flow costs with few and with many, and with a large set. A known flow never asks.

use super::bed::Bed;
use anyhow::{Context, Result};
use forwarder::config;
use forwarder::config::Role;
use forwarder::firewall::compile::compile;
use forwarder::plan::FirewallPlan;
use std::fmt::Write as _;

/// Rules to measure with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Ten, the last of which matches.
    Ten,
    /// Ten thousand with as many prefixes and ports, the last of which matches.
    TenThousand,
    /// One that names a set of 100,000 addresses that do not touch, and one that matches.
    Set,
}

impl Rules {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ten, Self::TenThousand, Self::Set];

    /// What a row calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ten => "10 rules",
            Self::TenThousand => "10,000 rules",
            Self::Set => "a set of 100,000",
        }
    }

    /// As an operator would write them. New flows come from 10.66.0.0/16 and 2001:db8:1::/48 or so and are allowed last.
    fn text(self) -> String {
        let mut text = String::from("[firewall]\nmax_memory = \"512m\"\n");
        match self {
            Self::Set => {
                text.push_str("[[firewall.set]]\nname = \"many\"\nprefixes = [");
                for n in 0..100_000u32 {
                    write!(text, "\"11.{}.{}.{}\",", n >> 15, n >> 7 & 255, (n & 127) * 2)
                        .expect("strings take everything");
                }
                text.push_str("]\n[[firewall.rule]]\naction = \"deny\"\ndestination = \"@many\"\n");
            }
            Self::Ten | Self::TenThousand => {
                let count = if self == Self::Ten { 9 } else { 9_999 };
                for n in 0..count {
                    let (net, host, port) = (n >> 8, n & 255, 1 + n * 5);
                    writeln!(
                        text,
                        "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"udp\"\nsource = [\"10.66.{host}.0/24\", \
                         \"172.{}.{host}.0/24\"]\ndestination_ports = [\"{port}-{}\"]\ndestination = \"{}.{host}.0.0/16\"",
                        16 + net,
                        port + 3,
                        20 + net
                    )
                    .expect("strings take everything");
                }
            }
        }
        text + "[[firewall.rule]]\naction = \"allow\"\nin = \"inside\"\n"
    }
}

/// Has a bed's new flows ask these rules.
///
/// # Errors
/// When the kernel refuses.
pub fn set(bed: &Bed, rules: Rules) -> Result<()> {
    let config = config::parse(&rules.text(), "rules").context("the rules are wrong")?;
    let interfaces = [("in0".to_owned(), Role::Inside), ("out0".to_owned(), Role::Outside)];
    let begun = std::time::Instant::now();
    let plan = FirewallPlan::of(&config.firewall, &interfaces, &mut Vec::new());
    let policy = compile(&plan.matchers, config.firewall.max_memory.into())?;
    let compiled = begun.elapsed();
    bed.datapath.write_policy(&policy.lines)?;
    let (name, mib) = (rules.name(), policy.bytes() as f64 / f64::from(1 << 20));
    eprintln!("prog: {name}: {mib:.1} MiB, compiled in {compiled:.1?}, active after {:.1?}", begun.elapsed());
    let mut control = bed.datapath.read_control()?;
    control.firewall = plan.switches;
    Ok(bed.datapath.write_control(&control)?)
}

/// No rules any more.
///
/// # Errors
/// When the kernel refuses.
pub fn clear(bed: &Bed) -> Result<()> {
    let mut control = bed.datapath.read_control()?;
    control.firewall = 0;
    Ok(bed.datapath.write_control(&control)?)
}
