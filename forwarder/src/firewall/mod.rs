//! The firewall in user space: what the operator's rules mean, compiled for the datapath, counted and explained.

pub mod compile;
pub mod explain;
pub mod ledger;
pub mod live_sets;
pub mod lockout;
pub mod log;
pub mod ranges;
pub mod report;
pub mod shadow;
