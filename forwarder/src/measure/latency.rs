//! The datapath's own processing time, from its histogram of sampled frames.

use forwarder_ebpf::abi::dwell_bucket_ns;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Percentiles of the time from the program's entry to its verdict, in nanoseconds. Buckets are 6 % wide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessingTime {
    /// Frames that were measured.
    pub samples: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest; everything of a millisecond and more counts as one.
    pub max_ns: u64,
}

impl ProcessingTime {
    /// From the counts of all buckets, see `abi::dwell_bucket_ns`.
    pub fn of(buckets: &[u64]) -> Self {
        let mut histogram = Histogram::<u64>::new(3).expect("three significant figures are allowed");
        for (bucket, count) in (0..).zip(buckets).filter(|(_, count)| **count > 0) {
            // Resizes by itself; the largest bucket is about a millisecond.
            let _ = histogram.record_n(dwell_bucket_ns(bucket), *count);
        }
        Self {
            samples: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_ebpf::abi::{DWELL_BUCKETS, dwell_bucket};

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut buckets = vec![0; DWELL_BUCKETS as usize];
        for ns in 1..=1000 {
            buckets[dwell_bucket(ns) as usize] += 1;
        }
        let time = ProcessingTime::of(&buckets);
        assert_eq!(time.samples, 1000);
        for (quantile, value) in [(500, time.p50_ns), (900, time.p90_ns), (990, time.p99_ns), (1000, time.max_ns)] {
            assert!(value.abs_diff(quantile) * 100 <= quantile * 7, "{quantile}: {value}");
        }
        assert_eq!(ProcessingTime::of(&[]), ProcessingTime::default());
    }
}
