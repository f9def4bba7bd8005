//! The table of golden cases, by subject.

mod answers;
mod arm;
mod errors;
mod firewall;
mod flows;
mod fragments;
mod host;
mod ipv6;
mod nat;
mod nowhere;
mod protocols;
mod routes;
mod tcp;

use forwarder_golden::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        nat::cases(),
        protocols::cases(),
        tcp::cases(),
        arm::cases(),
        ipv6::cases(),
        fragments::cases(),
        errors::cases(),
        answers::cases(),
        routes::cases(),
        nowhere::cases(),
        flows::cases(),
        host::cases(),
        firewall::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
