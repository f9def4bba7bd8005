//! Generation: a thread that stays on a CPU and does nothing but run the generator.
//!
//! One call of `BPF_PROG_TEST_RUN` with live frames costs 25 to 35 ms to begin and end, mostly asleep, so there is one long
//! call that a signal ends, and what is measured lies in its middle.
#![expect(unsafe_code, reason = "a signal handler and a priority; see the SAFETY notes")]

use super::{Counts, Load};
use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

/// Frames that the kernel hands to the generator at once.
const BATCH: u32 = 64;
/// Ends a generation.
const STOP: Signal = Signal::SIGUSR1;
/// How long frames may be on their way after the last was sent.
const SETTLE: Duration = Duration::from_millis(30);

/// How often a burst is looked at.
const POLL: Duration = Duration::from_micros(100);

/// How much to generate.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many runs of the generator.
    Frames(u32),
    /// Until it is stopped: some minutes at the most.
    Endless,
}

/// What was seen in a window in the middle of a generation.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Frames that arrived per second, both directions.
    pub pps: f64,
    /// All of the generation, from its first frame to its last.
    pub total: Counts,
}

/// What came of an exact number of frames.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// Frames that did not arrive.
    pub lost: u64,
    /// Frames sent per second.
    pub per_second: f64,
}

impl Window {
    /// Frames of the generation that did not arrive.
    pub fn lost(&self) -> u64 {
        self.total.all_sent().saturating_sub(self.total.all_arrived())
    }

    /// The same as a share.
    pub fn loss(&self) -> f64 {
        self.lost() as f64 / (self.total.all_sent() as f64).max(1.0)
    }
}

impl Load {
    /// Generates frames of `bytes` (for a mix, the longest) on the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn generate(&self, bytes: usize, amount: Amount) -> Result<()> {
        let program: &Xdp = self.programs.program("generate").context("no program generate")?.try_into()?;
        let frame = vec![0; bytes];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = match amount {
            Amount::Frames(frames) => frames,
            Amount::Endless => i32::MAX as u32,
        };
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        match program.test_run(options) {
            Ok(_) => Ok(()),
            Err(error) if is_interrupted(&error) => Ok(()),
            Err(error) => Err(error).context("cannot generate"),
        }
    }

    /// Generates on a CPU for as long as `act` takes.
    ///
    /// # Errors
    /// When the kernel refuses, or `act`'s own.
    pub fn while_generating<T>(&self, cpu: usize, bytes: usize, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let (outcome, early) = self.generate_beside(cpu, bytes, Amount::Endless, act)?;
        ensure!(!early, "the generator ended by itself");
        outcome
    }

    /// Generates on a CPU for as long as `act` takes, but no more than so many frames, however long that is. Also tells whether
    /// `act` took no longer than they lasted.
    ///
    /// # Errors
    /// When the kernel refuses, or `act`'s own.
    pub fn while_generating_up_to<T>(
        &self,
        cpu: usize,
        bytes: usize,
        frames: u32,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<(T, bool)> {
        let (outcome, early) = self.generate_beside(cpu, bytes, Amount::Frames(frames), act)?;
        Ok((outcome?, !early))
    }

    /// Generates while `act` is at it. What came of that, and whether the generator was at its end before.
    fn generate_beside<T>(
        &self,
        cpu: usize,
        bytes: usize,
        amount: Amount,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<(Result<T>, bool)> {
        handle_stop();
        let (tell, told) = mpsc::channel::<Pthread>();
        std::thread::scope(|scope| {
            let generator = scope.spawn(move || {
                stay_on(cpu)?;
                come_first();
                tell.send(pthread_self()).context("nobody wants to know the generator")?;
                self.generate(bytes, amount)
            });
            let outcome = act();
            let early = generator.is_finished();
            if let Ok(thread) = told.recv() {
                // More than once: a signal before the call begins ends nothing.
                while !generator.is_finished() {
                    pthread_kill(thread, STOP).context("cannot stop the generator")?;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            generator.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((outcome, early))
        })
    }

    /// Generates exactly `frames` frames on a CPU, as fast as it can, and waits until they have arrived.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn burst(&self, cpu: usize, bytes: usize, frames: u32) -> Result<Burst> {
        let before = self.counts()?;
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| {
                stay_on(cpu)?;
                come_first();
                self.generate(bytes, Amount::Frames(frames))
            });
            let clock = self.time_sent(before.all_sent(), u64::from(frames), || generator.is_finished());
            generator.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            std::thread::sleep(SETTLE);
            let after = self.counts()?;
            let sent = after.all_sent() - before.all_sent();
            ensure!(sent == u64::from(frames), "only {sent} of {frames} frames were sent: a signal came between");
            let arrived = after.all_arrived() - before.all_arrived();
            Ok(Burst { lost: u64::from(frames).saturating_sub(arrived), per_second: clock? })
        })
    }

    /// Frames per second from the first that is seen to have been sent until all are, or until it is over. Where all are at the
    /// first look, which had to wait for a CPU, from the last moment at which there was none.
    fn time_sent(&self, before: u64, frames: u64, is_over: impl Fn() -> bool) -> Result<f64> {
        let (mut none_yet, mut begun) = (Instant::now(), None);
        loop {
            let over = is_over();
            let (now, sent) = (Instant::now(), self.counts()?.all_sent() - before);
            let is_done = sent >= frames || over;
            if sent == 0 {
                ensure!(!over, "nothing was generated");
                none_yet = now;
            } else {
                let (since, already) = *begun.get_or_insert(if is_done { (none_yet, 0) } else { (now, sent) });
                if is_done {
                    return Ok((sent - already) as f64 / (now - since).as_secs_f64().max(1e-9));
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Generates on a CPU and looks at a window of it. To be configured before.
    ///
    /// # Errors
    /// When the kernel refuses, and when nothing arrives.
    pub fn window(&self, cpu: usize, bytes: usize, run_up: Duration, length: Duration) -> Result<Window> {
        let pps = self.while_generating(cpu, bytes, || {
            std::thread::sleep(run_up);
            let (before, begun) = (self.counts()?.all_arrived(), Instant::now());
            std::thread::sleep(length);
            let (after, took) = (self.counts()?.all_arrived(), begun.elapsed());
            Ok((after - before) as f64 / took.as_secs_f64())
        })?;
        std::thread::sleep(SETTLE);
        Ok(Window { pps, total: self.counts()? })
    }
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// When there is no such CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// Has the calling thread run before others on its CPU, as far as the kernel's scheduler does that: what else the machine
/// does would be measured as the device's cost.
pub fn come_first() {
    // SAFETY: takes numbers only. 0 is the calling thread. Without the right to do so nothing changes, which is no harm.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, -20) };
}

/// A signal that is ignored interrupts no system call, one that is handled does.
fn handle_stop() {
    static ONCE: Once = Once::new();
    extern "C" fn nothing(_: nix::libc::c_int) {}
    ONCE.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler touches nothing at all, so it may run at any point of any thread; nobody else in this program
        // handles this signal.
        let installed = unsafe { sigaction(STOP, &action) };
        installed.expect("a valid signal and a valid handler are not refused");
    });
}

fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == std::io::ErrorKind::Interrupted)
}
