//! Programs run on frames of our own (`BPF_PROG_TEST_RUN`): a held frame again, golden cases, the clock.

use super::load::{CLOCK, ENTER, xdp};
use super::{Datapath, DatapathError, Result};
use aya::programs::{TestRun, TestRunOptions};
use forwarder_ebpf::abi::Ticks;
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// Room for what an ICMP error adds in front, and more.
const GROWTH: usize = 256;

/// Bytes in front of a frame of ours, XDP's metadata: by them the programs tell it from one that came by an interface, see
/// `scratch::level` there.
const FRONT: usize = 4;

/// What a program wants done with a frame (linux/bpf.h, `enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// 0: the program failed.
    Aborted,
    /// 1: it ends here.
    Drop,
    /// 2: the kernel gets it.
    Pass,
    /// 3: back out by where it came.
    Transmit,
    /// 4: out by another interface.
    Redirect,
    /// Not an action.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// What came of a frame.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What is to be done with it.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Mean time of one run.
    pub duration: Duration,
}

/// `struct xdp_md` (linux/bpf.h).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Datapath {
    /// Runs the datapath on a frame as if it had come by an interface, and counts it as such. Nothing is sent: that is the
    /// caller's.
    ///
    /// # Errors
    /// When the kernel refuses: a frame shorter than an Ethernet header or longer than a page, no such interface.
    pub fn run_frame(&self, ingress: u32, frame: &[u8]) -> Result<Ran> {
        self.run_program(ENTER, Some(ingress), frame, 1)
    }

    /// The same `repeat` times in a row on the same buffer: for measuring. What comes out is the last run's.
    ///
    /// # Errors
    /// As [`Datapath::run_frame`].
    pub fn run_frame_repeatedly(&self, ingress: u32, frame: &[u8], repeat: u32) -> Result<Ran> {
        self.run_program(ENTER, Some(ingress), frame, repeat)
    }

    /// The kernel's time as the datapath reads it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_ticks(&self) -> Result<Ticks> {
        match self.run_program(CLOCK, None, &[0; 64], 1)?.action {
            Action::Aborted => Ok(0),
            Action::Drop => Ok(1),
            Action::Pass => Ok(2),
            Action::Transmit => Ok(3),
            Action::Redirect => Ok(4),
            Action::Unknown(ticks) => Ok(ticks),
        }
    }

    pub(super) fn run_program(
        &self,
        name: &'static str,
        ingress: Option<u32>,
        frame: &[u8],
        repeat: u32,
    ) -> Result<Ran> {
        let mut programs = self.programs.lock().expect("no thread panics while it holds the programs");
        let program = xdp(&mut programs, name)?;
        let frame = &[&[0; FRONT][..], frame].concat();
        let context = ingress.map(|ingress_ifindex| Context {
            data: FRONT as u32,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        });
        let mut out = vec![0; frame.len() + GROWTH];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = context.as_ref().map(IntoBytes::as_bytes);
        options.repeat = repeat;
        let ran = program.test_run(options).map_err(|source| DatapathError::Run(Box::new(source)))?;
        out.truncate(ran.data_size_out as usize);
        out.drain(..FRONT.min(out.len()));
        Ok(Ran { action: ran.return_value.into(), frame: out, duration: ran.duration })
    }
}
