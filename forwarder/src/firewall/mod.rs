//! The firewall in user space: what the operator's rules mean, compiled for the datapath.

pub mod compile;
pub mod ranges;
