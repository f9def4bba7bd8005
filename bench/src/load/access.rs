//! What an access to memory costs on this machine, taken beside what a packet costs.

use super::{OBJECT, program, words};
use anyhow::{Context, Result, ensure};
use aya::maps::Array;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use forwarder_ebpf::abi::{LOAD_ACCESSES, LoadWalk};

/// What the program returns at its end (`linux/bpf.h`).
const XDP_DROP: u32 = 1;
/// Runs of one measurement.
const RUNS: u32 = 1000;

type WalkWords = [u64; size_of::<LoadWalk>() / 8];

/// Memory like a flow table's, and the program that walks in it.
#[derive(Debug)]
pub struct Access {
    programs: Ebpf,
}

impl Access {
    /// `flows` cells to visit, scattered over `cells`, a cache line each.
    ///
    /// # Errors
    /// When the kernel refuses, or has no memory.
    pub fn new(flows: u32, cells: u32) -> Result<Self> {
        let mut programs = EbpfLoader::new()
            .map_max_entries("CELLS", cells)
            .load(OBJECT)
            .with_context(|| format!("cannot allot {cells} cells in the kernel"))?;
        program(&mut programs, "access")?.load().context("the kernel refuses `access`")?;
        let mut walk: Array<_, WalkWords> = programs.map_mut("WALK").context("no map WALK")?.try_into()?;
        walk.set(0, words::<WalkWords>(&LoadWalk { flows, cells, ..LoadWalk::default() })?, 0)
            .context("cannot begin a walk")?;
        Ok(Self { programs })
    }

    /// One access after the other, ns each, a few of which are the program's own. What fits the caches is in them then.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ns(&self) -> Result<f64> {
        let program: &Xdp = self.programs.program("access").context("no program access")?.try_into()?;
        let frame = [0; 64];
        let walk = || {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&frame);
            options.repeat = RUNS;
            let ran = program.test_run(options).context("cannot walk")?;
            ensure!(ran.return_value == XDP_DROP, "the walk left its cells");
            Ok(ran.duration.as_nanos() as f64 / f64::from(LOAD_ACCESSES))
        };
        walk()?;
        walk()
    }
}
