//! The sweeper's thread: passes over the flow table often enough for the timeouts, and for some 4 % of one core: after a pass
//! it rests 24 times as long as that took, so a pass that takes longer than the one before costs more. Under pressure 10 %. For
//! flow logs as often as their windows end, and never for more than half of one.

use crate::flowlog::feed::Feed;
use crate::flows::log::Logger;
use crate::flows::sweep::{Census, Judge, pass};
use crate::live::{Live, SweepRequest};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passes follow at least this long after one another.
const PERIOD: Duration = Duration::from_secs(1);
/// The same under pressure.
const PERIOD_UNDER_PRESSURE: Duration = Duration::from_millis(200);

/// Starts the thread, which ends with the process.
///
/// # Errors
/// When the system has no thread left.
pub fn start(live: Arc<Live>, requests: Receiver<SweepRequest>, feed: Feed) -> std::io::Result<()> {
    let logger = Logger::new(feed);
    std::thread::Builder::new().name("sweeper".to_owned()).spawn(move || run(&live, &requests, logger)).map(drop)
}

fn run(live: &Live, requests: &Receiver<SweepRequest>, mut logger: Logger) {
    let (mut next, mut asked) = (Instant::now(), Vec::new());
    loop {
        let request = match requests.recv_deadline(next) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Those who asked meanwhile are served by this pass as well.
        asked.extend(request.into_iter().chain(requests.try_iter()));
        let last = asked.iter().any(|request| request.last);
        // Of changes there is one at a time (`FlowLogs::prepare`).
        asked.iter_mut().filter_map(|request| request.flow_logs.take()).for_each(|change| logger.change(change));
        let took = sweep(live, &mut logger, last);
        if last {
            return;
        }
        // Who waits for a change that a failed pass did not make waits on.
        if !logger.is_changing() {
            asked.clear();
        }
        next = Instant::now() + pause(took, live.is_under_pressure(), logger.ends_in());
    }
}

/// How long to wait after a pass. A window of flow logs that ends is not kept waiting, unless that took more than half a core:
/// then windows become longer.
fn pause(took: Duration, pressure: bool, ends: Option<Duration>) -> Duration {
    let pause = if pressure { PERIOD_UNDER_PRESSURE.max(took * 9) } else { PERIOD.max(took * 24) };
    ends.map_or(pause, |ends| pause.min(ends.max(took)))
}

fn sweep(live: &Live, logger: &mut Logger, last: bool) -> Duration {
    let begun = worked();
    let before = live.census().clone();
    let census = live.clock().and_then(|clock| {
        let judge = Judge {
            clock,
            timeouts: live.timeouts(),
            pressure: live.is_under_pressure(),
            sources: live.limits_sources(),
        };
        logger.begin(live, clock, last);
        let census = pass(live.datapath(), &judge, (&before, logger));
        let refused = logger.take_refused(live.datapath());
        logger.take_given_up(live, clock);
        logger.finish(census.is_ok());
        refused.and(census)
    });
    match census {
        Ok(census) => publish(live, census),
        Err(error) => tracing::error!(error = crate::error::one_line(&error), "cannot sweep the flow table"),
    }
    worked().saturating_sub(begun)
}

/// CPU time of this thread, system calls included. Not the time that passes: on a busy machine a pass takes long without
/// costing more, and that is when flows of a flood have to be forgotten soon.
pub fn worked() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn publish(live: &Live, census: Census) {
    let datapath = live.datapath();
    let full = match (datapath.flows4.used(), datapath.flows6.used()) {
        (Ok(used4), Ok(used6)) => {
            is_nearly_full(used4, datapath.flows4.max_entries()) || is_nearly_full(used6, datapath.flows6.max_entries())
        }
        // The next pass may know more.
        _ => live.is_under_pressure(),
    };
    if full != live.is_under_pressure() {
        tracing::warn!(
            flows = census.flows4 + census.flows6,
            "the flow table is {} nearly full",
            if full { "now" } else { "no longer" }
        );
    }
    live.set_pressure(full);
    *live.census() = census;
}

/// 98 %: a table that is merely well used is left in peace. What is on its way out takes room as well.
fn is_nearly_full(used: u32, entries: u32) -> bool {
    u64::from(used) * 50 >= u64::from(entries) * 49
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_at_98_percent() {
        assert!(is_nearly_full(98, 100) && !is_nearly_full(97, 100) && is_nearly_full(u32::MAX, u32::MAX));
    }

    #[test]
    fn passes_take_their_share_of_a_core() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(1), false, None), PERIOD);
        assert_eq!(pause(ms(400), false, None), ms(9600));
        assert_eq!(pause(ms(400), true, None), ms(3600));
        assert_eq!(pause(ms(400), false, Some(ms(550))), ms(550), "a window ends");
        assert_eq!(pause(ms(400), false, Some(ms(50))), ms(400), "and would end all the time");
        assert_eq!(pause(ms(1), false, Some(ms(60_000))), PERIOD);
    }
}
