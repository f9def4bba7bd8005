//! `forwarder-bench`: what the appliance, the kernel and the bare hardware path do on the same machine in the same minute.
//!
//! ```text
//! local --> lab (namespaces, devices under test) --> load (generator and sink in XDP)
//!       \-> report (rows of rounds, medians, ratios)
//! ```

pub mod lab;
pub mod load;
pub mod local;
pub mod report;
