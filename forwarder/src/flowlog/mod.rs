//! Flow logs.
pub mod append;
pub mod clock;
pub mod destination;
pub mod file;
pub mod ledger;
pub mod progress;
pub mod text;
