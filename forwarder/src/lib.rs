//! The controller of forwarder: loads the datapath, keeps it told, counts and shows.
//!
//! ```text
//! main --> run --> controller --> { plan, host, flows, measure } --> datapath --> forwarder_ebpf::abi
//!      \-> commands --> client ~~ control socket ~~ api --> live
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`config`], [`plan`] | what the operator wrote; what it means on this host |
//! | [`host`] | netlink, sysctls, ports, locks: the host's side of everything |
//! | [`firewall`] | rules compiled for the datapath, counted and explained |
//! | [`datapath`] | the programs and maps in the kernel; the only module that names aya |
//! | [`controller`], [`waiting`], [`unreachable`](mod@unreachable) | the loop; frames that wait for a neighbour, and the answer when none comes |
//! | [`flows`], [`sweeper`] | connections: list, flush, forget; who talks most |
//! | [`record`], [`flowlog`] | flow log records; who makes them and where they go |
//! | [`measure`], [`status`] | rates, latencies; the page that shows them |
//! | [`run`], [`state`], [`live`], [`api`] | one running instance and its control socket |
//! | [`cli`], [`commands`], [`client`], [`logging`], [`error`] | the command line |

pub mod api;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod controller;
pub mod datapath;
pub mod error;
pub mod firewall;
pub mod flowlog;
pub mod flows;
pub mod host;
pub mod live;
pub mod logging;
pub mod measure;
pub mod plan;
pub mod record;
pub mod run;
pub mod state;
pub mod status;
pub mod sweeper;
pub mod unreachable;
pub mod waiting;
