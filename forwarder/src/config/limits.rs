//! `[flows]`, `[icmp]` and `[measure]`: how much of everything.

use super::document::Section;
use super::error::Result;
use std::ops::RangeInclusive;

pub(super) const FLOWS_KEYS: &[&str] = &["max", "max_ipv6", "pick_up_tcp"];
pub(super) const ICMP_KEYS: &[&str] = &["errors_per_second_per_cpu"];
pub(super) const MEASURE_KEYS: &[&str] = &["time_one_in"];

/// Connections that a flow table can be made for. The kernel's own limit is a little under 64 m: it takes no more than
/// 2^27 buckets, and a connection has two entries.
pub const CONNECTIONS: RangeInclusive<u32> = 1 << 10..=16 << 20;

/// Which TCP connections begin with a packet in their middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PickUpTcp {
    /// Those that were there before a fresh start: for `timeouts.tcp_established` after it, and then no more.
    #[default]
    AfterStart,
    /// All.
    Always,
    /// None.
    Never,
}

impl PickUpTcp {
    /// As the config calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfterStart => "after-start",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// `[flows]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// IPv4 connections that can be known at once. None: as the machine's memory allows.
    pub max: Option<u32>,
    /// IPv6 connections that can be known at once. None: a quarter of the above.
    pub max_ipv6: Option<u32>,
    /// Which TCP connections begin with a packet in their middle.
    pub pick_up_tcp: PickUpTcp,
}

impl Flows {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let mut flows = Self::default();
        for (key, max) in [("max", &mut flows.max), ("max_ipv6", &mut flows.max_ipv6)] {
            if let Some(field) = section.take(key) {
                *max = Some(field.size(&CONNECTIONS)?);
            }
        }
        if let Some(field) = section.take("pick_up_tcp") {
            let choices = [PickUpTcp::AfterStart, PickUpTcp::Always, PickUpTcp::Never];
            flows.pick_up_tcp = field.choice(&choices.map(|choice| (choice.name(), choice)), &[])?;
        }
        Ok(flows)
    }
}

/// `[icmp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// ICMP errors that each CPU may send in one second; 0: none at all. A CPU has no say in another's.
    pub errors_per_second_per_cpu: u32,
}

impl Default for Icmp {
    /// What Linux allows a whole host by default (`net.ipv4.icmp_msgs_per_sec`), for each CPU.
    fn default() -> Self {
        Self { errors_per_second_per_cpu: 1000 }
    }
}

impl Icmp {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let mut icmp = Self::default();
        if let Some(field) = section.take("errors_per_second_per_cpu") {
            icmp.errors_per_second_per_cpu = field.size(&(0..=1 << 20))?;
        }
        Ok(icmp)
    }
}

/// `[measure]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// One packet in this many, a power of two, has its processing time taken. None: no packet has.
    pub time_one_in: Option<u32>,
}

impl Default for Measure {
    /// Often enough for percentiles within a second, and rare enough that reading the clock hardly counts on average.
    fn default() -> Self {
        Self { time_one_in: Some(64) }
    }
}

impl Measure {
    const MOST: u32 = 1 << 20;

    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        let Some(field) = section.take("time_one_in") else { return Ok(Self::default()) };
        if field.text("").is_ok_and(|text| text == "off") {
            return Ok(Self { time_one_in: None });
        }
        match field.size(&(0..=Self::MOST)) {
            Ok(0) => Ok(Self { time_one_in: None }),
            Ok(number) if number.is_power_of_two() => Ok(Self { time_one_in: Some(number) }),
            _ => Err(field.refuse(format!("must be a power of two from 1 to {}, such as 64, or \"off\"", Self::MOST))),
        }
    }
}
