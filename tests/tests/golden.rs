//! One table of cases, two bodies: the sim, and the loaded BPF programs. What both do has to be what the table says, and
//! the same in all that can be seen: action, bytes, every counter, every flow entry.
//!
//! `golden_sim` needs nothing. `golden_kernel` needs root; it works in a namespace of its own.

mod golden {
    pub mod cases;
    pub mod kernel;
    pub mod pair;
    pub mod play;
}

use anyhow::{Result, ensure};
use forwarder_golden::body::run;
use forwarder_golden::sim_body::SimBody;
use forwarder_kit::Netns;
use golden::kernel::{KernelBody, furnish};
use golden::pair::Pair;

#[test]
fn golden_sim() {
    let mut body = SimBody::default();
    let cases = golden::cases::all();
    let failed = cases.iter().filter_map(|case| {
        let error = run(case, &mut body).err()?;
        Some(format!("{}:\n  {error}", case.sentence))
    });
    none(failed.collect());
}

#[test]
fn golden_kernel() -> Result<()> {
    let netns = Netns::new("golden")?;
    furnish(&netns)?;
    let failed = netns.enter(|| {
        let mut body = Pair::new(SimBody::default(), KernelBody::new(&netns)?);
        let mut failed = Vec::new();
        for case in golden::cases::all() {
            let error = run(&case, &mut body).err();
            let wrong: Vec<_> = error.into_iter().chain(body.take_differences()).collect();
            if !wrong.is_empty() {
                failed.push(format!("{}:\n  {}", case.sentence, wrong.join("\n  ")));
            }
        }
        ensure!(body.handshakes() > 0, "no round trip was measured");
        Ok(failed)
    })?;
    none(failed);
    Ok(())
}

/// Beyond the table: plays that nobody thought of, in which both bodies still have to do the same.
#[test]
fn golden_kernel_plays() -> Result<()> {
    let netns = Netns::new("plays")?;
    furnish(&netns)?;
    let failed = netns.enter(|| {
        let mut body = Pair::new(SimBody::default(), KernelBody::new(&netns)?);
        let mut failed = Vec::new();
        for seed in 1..=PLAYS {
            golden::play::run(&golden::play::script(seed), &mut body);
            let wrong = body.take_differences();
            if !wrong.is_empty() {
                failed.push(format!("play {seed}:\n  {}", wrong.join("\n  ")));
            }
        }
        ensure!(body.handshakes() > 0, "no round trip was measured");
        Ok(failed)
    })?;
    none(failed);
    Ok(())
}

/// How many plays; about ten seconds.
const PLAYS: u64 = 200;

fn none(failed: Vec<String>) {
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}
