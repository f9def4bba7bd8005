//! The packet core in a small world: interfaces, stations and routes that all cases share, what a case is, the bodies that
//! it runs in, and what has to hold whatever comes.
//!
//! ```text
//! world <- case <- body (trait Body, judge) <- sim_body
//!   ^------ script (bytes become events) <- laws (hold after each)
//!   ^------ pair of ends (who sends what, by which interface)
//! ```
//! The golden table, and the body of loaded BPF programs, stand in `tests/tests/golden`; properties and `tests/fuzz` use the
//! same laws.

pub mod body;
pub mod case;
pub mod ends;
pub mod laws;
pub mod script;
pub mod sim_body;
pub mod world;
