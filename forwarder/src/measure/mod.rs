//! Rates and latencies from the datapath's counters: read once a second, so that asking costs the datapath nothing.

pub mod latency;
pub mod rates;
