//! Time for records. Windows are measured with a clock that never jumps; seconds since 1970 are its reading plus an offset that
//! follows the wall clock.
//!
//! The wall clock may be set, also back. Then the offset moves, is said, and records from then on carry the new time;
//! windows go on with the length that they have, so nothing is counted twice or left out.

use forwarder_ebpf::abi::Ticks;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall clock that is further off than this has been set, not drifted.
const JUMP: Duration = Duration::from_millis(1500);

/// Where the time comes from.
pub trait Source: Send {
    /// A clock that never jumps.
    fn steady(&self) -> Duration;
    /// The wall clock, since 1970.
    fn wall(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct Machine {
    begun: Instant,
}

impl Default for Machine {
    fn default() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Source for Machine {
    fn steady(&self) -> Duration {
        self.begun.elapsed()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A moment on all three clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The steady clock.
    pub steady: Duration,
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// The datapath's clock.
    pub ticks: Ticks,
    /// Ticks in one second.
    pub per_second: u32,
}

impl Moment {
    /// When a stamp of the datapath was made, milliseconds since 1970. One from the next tick counts as now.
    pub fn unix_ms_of(&self, stamp: Ticks) -> i64 {
        let age = self.ticks.wrapping_sub(stamp);
        let age = if age > Ticks::MAX / 2 { 0 } else { age };
        self.unix_ms - i64::from(age) * 1000 / i64::from(self.per_second.max(1))
    }

    /// Seconds since 1970.
    pub fn unix(&self) -> i64 {
        self.unix_ms.div_euclid(1000)
    }
}

/// Reads the clocks.
pub struct Clocks {
    source: Box<dyn Source>,
    offset: Duration,
    jumps: u64,
}

impl std::fmt::Debug for Clocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clocks").field("offset", &self.offset).field("jumps", &self.jumps).finish_non_exhaustive()
    }
}

impl Default for Clocks {
    fn default() -> Self {
        Self::new(Box::<Machine>::default())
    }
}

impl Clocks {
    /// With time from `source`.
    pub fn new(source: Box<dyn Source>) -> Self {
        let offset = source.wall().saturating_sub(source.steady());
        Self { source, offset, jumps: 0 }
    }

    /// How often the wall clock has been set.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    /// The steady clock.
    pub fn steady(&self) -> Duration {
        self.source.steady()
    }

    /// This moment, at which the datapath's clock says `ticks`.
    pub fn moment(&mut self, ticks: Ticks, per_second: u32) -> Moment {
        let (steady, wall) = (self.source.steady(), self.source.wall());
        let expected = self.offset + steady;
        if wall.abs_diff(expected) > JUMP {
            self.jumps += 1;
            let (sign, by) = if wall < expected { ("back", expected - wall) } else { ("forward", wall - expected) };
            tracing::warn!(
                "the clock was set {sign} by {:.1} s: flow log records now carry the new time",
                by.as_secs_f64()
            );
        }
        // Drift is followed as well.
        self.offset = wall.saturating_sub(steady);
        Moment { steady, unix_ms: wall.as_millis() as i64, ticks, per_second }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Clocks in a test's hand: steady and wall, seconds.
    #[derive(Clone, Debug, Default)]
    pub(in crate::flowlog) struct Hand(pub Arc<Mutex<(f64, f64)>>);

    impl Hand {
        pub(in crate::flowlog) fn set(&self, steady: f64, wall: f64) {
            *self.0.lock().expect("no test panics with it") = (steady, wall);
        }
    }

    impl Source for Hand {
        fn steady(&self) -> Duration {
            Duration::from_secs_f64(self.0.lock().expect("no test panics with it").0)
        }

        fn wall(&self) -> Duration {
            Duration::from_secs_f64(self.0.lock().expect("no test panics with it").1)
        }
    }

    #[test]
    fn stamps_become_wall_time() {
        let moment = Moment { unix_ms: 10_000, ticks: 3, per_second: 250, ..Moment::default() };
        assert_eq!(moment.unix_ms_of(Ticks::MAX - 246), 9000, "ticks wrap");
        assert_eq!(moment.unix_ms_of(4), 10_000, "a stamp ahead is now");
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_drift_is_not() {
        let hand = Hand::default();
        hand.set(0.0, 1000.0);
        let mut clocks = Clocks::new(Box::new(hand.clone()));
        hand.set(10.0, 1010.5);
        assert_eq!((clocks.moment(0, 250).unix_ms, clocks.jumps()), (1_010_500, 0));
        hand.set(11.0, 500.0);
        assert_eq!((clocks.moment(0, 250).unix(), clocks.jumps()), (500, 1));
        hand.set(12.0, 501.0);
        assert_eq!((clocks.moment(0, 250).unix(), clocks.jumps()), (501, 1));
    }
}
