//! The flow table as people and programs see it: connections, not entries. Owns no state.
//!
//! `log` tells flow logs what it sees, `given_up` what the controller drops; `sweep` forgets connections whose time is up and takes the census; `list` shows, counts and removes them
//! on request, `top` says which move most.

pub mod filter;
pub mod given_up;
pub mod list;
pub mod load;
pub mod log;
pub mod sweep;
pub mod top;
