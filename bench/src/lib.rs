//! `forwarder-bench`: what the appliance, the kernel and the bare hardware path do on the same machine in the same minute.
//!
//! ```text
//! local, cps, latency --> lab (namespaces, devices under test) --> load (generator and sinks in XDP)
//!                     \-> report (rows of rounds, medians, ratios)
//! ```
//!
//! One module a measurement, each with `Options` and `run(&Options)` that hands over a `report::Table`.

pub mod cps;
pub mod lab;
pub mod latency;
pub mod load;
pub mod local;
pub mod report;
