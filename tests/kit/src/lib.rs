//! What tests, benches and the demo share. It knows no crate of the appliance: everything here looks at it from outside.
//!
//! ```text
//! appliance   the real binary as a process in a namespace: start, ask, stop, kill
//! topology    two-armed and one-armed little networks that vanish when dropped
//! sniff       frames as they are on an interface, in and out
//! slow        a wire that takes its time
//! serve       in-process HTTP, echo and DNS servers that remember who came
//! status      what the binary prints as JSON: the only place that knows its field names
//! supervise   Ctrl-C cleans up: a parent that removes what a child made
//! netns, run  one namespace; one command with a readable error
//! packet      frames built, recomputed and described: no root, no namespaces
//! ```
//!
//! # Rules
//! - Every name that is global on the machine (namespaces) carries the process id and a counter: tests run in parallel.
//! - Everything is undone on drop, so also when a test panics. Nothing outside the own namespaces is touched.
//! - A tool that is missing is an error that names the package; nothing is skipped silently.
//! - The checker in `packet::check` shares no code with the builder or with the appliance.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod appliance;
pub mod netns;
pub mod packet;
pub mod run;
pub mod serve;
pub mod slow;
pub mod sniff;
pub mod status;
pub mod supervise;
pub mod topology;

pub use appliance::Appliance;
pub use netns::Netns;
pub use packet::Packet;
pub use topology::Topology;
