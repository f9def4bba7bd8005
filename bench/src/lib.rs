//! `forwarder-bench`: what the appliance, the kernel and the bare hardware path do on the same machine in the same minute.
//!
//! ```text
//! local, cps, latency, flow_logs, two_host --> lab (namespaces, devices under test) --> load (generator and sinks in XDP)
//! local --> controller (what the appliance takes beside the packets); controller, flow_logs --> process
//! prog --> forwarder::datapath (the programs alone, frame by frame)
//! all of them --> report (rows of rounds, medians, ratios, charts) --> machine
//! compare --> report
//! ```
//!
//! One module a measurement, each with `Options` and `run(&Options)` that hands over a `report::Table`.

pub mod all;
pub mod compare;
pub mod controller;
pub mod cps;
pub mod flow_logs;
pub mod lab;
pub mod latency;
pub mod load;
pub mod local;
pub mod machine;
mod process;
pub mod prog;
pub mod report;
pub mod side_by_side;
pub mod two_host;
