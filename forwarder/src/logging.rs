//! Logs on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Names the level: error, warn, info (the default), debug, or a filter of `tracing_subscriber`.
const VARIABLE: &str = "FORWARDER_LOG";

/// Starts logging, a line for people or a JSON object each; once in a process.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if json { subscriber.json().init() } else { subscriber.init() }
}
