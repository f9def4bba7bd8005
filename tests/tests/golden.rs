//! One table of cases, two bodies: the sim, and the loaded BPF programs. What both do has to be what the table says, and
//! the same in all that can be seen: action, bytes, every counter, every flow entry.
//!
//! `golden_sim` needs nothing. `golden_kernel` needs root; it works in a namespace of its own.

mod golden {
    pub mod cases;
    pub mod kernel;
    pub mod pair;
    pub mod play;
    pub mod random;
}

use anyhow::{Result, ensure};
use forwarder_golden::body::run;
use forwarder_golden::sim_body::SimBody;
use forwarder_kit::Netns;
use golden::kernel::{KernelBody, furnish};
use golden::pair::Pair;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;

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
            // Every second without rules: what no rule is asked about goes another way.
            let policies = if seed % 2 == 0 { vec![] } else { vec![seed, PLAYS + seed] };
            let policies: Vec<_> = policies.into_iter().map(|seed| golden::random::policy(seed).text()).collect();
            golden::play::run(&golden::play::script(seed), &policies, &mut body);
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

/// Rules and packets that nobody thought of: a plain reading says what has to become of each packet, by which rule.
#[test]
fn golden_kernel_rules() -> Result<()> {
    let netns = Netns::new("rules")?;
    furnish(&netns)?;
    netns.enter(|| {
        let body = RefCell::new(Pair::new(SimBody::default(), KernelBody::new(&netns)?));
        let mut runner = TestRunner::new(Config { cases: POLICIES, failure_persistence: None, ..Config::default() });
        runner.run(&golden::random::rules_and_packets(), |(policy, probes)| {
            let mut body = body.borrow_mut();
            let tried = golden::random::try_rules(&policy, &probes, &mut *body);
            let differences = body.take_differences();
            tried.map_err(TestCaseError::fail)?;
            prop_assert!(differences.is_empty(), "{}\n{}", differences.join("\n"), policy.text());
            Ok(())
        })?;
        Ok(())
    })
}

/// How many policies.
const POLICIES: u32 = 200;

/// How many plays; some fifteen seconds.
const PLAYS: u64 = 200;

fn none(failed: Vec<String>) {
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}
