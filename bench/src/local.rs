//! Packets per second: generator, device and sink on one core, devices in turn within each round, so that whatever the
//! machine does meanwhile happens to all of them.
//!
//! A device sees every flow once before it is measured. The rate is what arrived at the sink in a window in the middle of
//! one long generation: starting and stopping a generation costs tens of milliseconds, mostly asleep.

use crate::lab::{Device, Lab};
use crate::report::Table;
use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Ethernet without the frame check sequence, as all lengths here.
const FRAME_BYTES: usize = 60;
/// Packets by which a device's rate is estimated before it is measured.
const RATE_PACKETS: u32 = 1_000_000;
/// From the start of a generation to the window.
const RUN_UP: Duration = Duration::from_millis(300);

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Numbers of flows
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000, 100_000, 1_000_000])]
    pub flows: Vec<u32>,
    /// Devices under test; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    pub devices: Vec<Device>,
    /// Rounds, each with every device
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Length of a measurement, milliseconds
    #[arg(long, default_value_t = 2000)]
    pub window_ms: u64,
    /// Bytes of a frame, without frame check sequence
    #[arg(long, default_value_t = FRAME_BYTES)]
    pub bytes: usize,
    /// The headline in about a minute: three rounds of a second, with 1,000, 100,000 and 1,000,000 flows
    #[arg(long)]
    pub quick: bool,
}

/// One measurement.
struct Measured {
    pps: f64,
    lost: u64,
    wrong: u64,
}

/// Measures everything in interleaved rounds.
///
/// # Errors
/// When something cannot be set up, or a device does not do what it says: translations that are wrong, nothing that arrives.
pub fn run(options: &Options) -> Result<Table> {
    let (flows, rounds, window_ms) = if options.quick {
        (vec![1_000, 100_000, 1_000_000], 3, 1000)
    } else {
        (options.flows.clone(), options.rounds, options.window_ms)
    };
    let devices = if options.devices.is_empty() { Device::ALL.to_vec() } else { options.devices.clone() };
    let mut table = Table::new("local");
    for round in 1..=rounds {
        for flows in &flows {
            for device in &devices {
                eprintln!("round {round} of {rounds}: {}, {flows} flows", device.name());
                let measured = measure(*device, *flows, options.bytes, Duration::from_millis(window_ms))
                    .with_context(|| format!("{}, {flows} flows", device.name()))?;
                let row = table.row("pps", [("device", device.name()), ("flows", &flows.to_string())]);
                row.push(measured.pps);
                if measured.lost > 0 {
                    row.note(format!("lost {} in round {round}", measured.lost));
                }
                ensure!(measured.wrong == 0, "{} frames arrived from the wrong address", measured.wrong);
            }
        }
    }
    Ok(table)
}

fn measure(device: Device, flows: u32, bytes: usize, window: Duration) -> Result<Measured> {
    let lab = Lab::new(device, flows)?;
    let load = &lab.load;
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            let mut cpu = CpuSet::new();
            cpu.set(0).context("there is no CPU 0")?;
            sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on CPU 0")?;
            // Every flow once; then enough of them to know the rate, starting takes some 30 ms.
            load.generate(bytes, flows)?;
            let begun = Instant::now();
            load.generate(bytes, RATE_PACKETS)?;
            let per_second = f64::from(RATE_PACKETS) / begun.elapsed().as_secs_f64();
            let all = (window + 3 * RUN_UP).as_secs_f64() * per_second * 2.0;
            load.generate(bytes, all.min(4e9) as u32)
        });
        // Until the first generation is over and the second one runs.
        while load.sent()? < u64::from(flows) + u64::from(RATE_PACKETS) + 1000 {
            ensure!(!generator.is_finished(), "the generator ended early");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(RUN_UP);
        let (before, sent_before, begun) = (load.arrived()?, load.sent()?, Instant::now());
        std::thread::sleep(window);
        let (after, sent_after, took) = (load.arrived()?, load.sent()?, begun.elapsed());
        ensure!(!generator.is_finished(), "the generator ended before the window did");
        generator.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let arrived = after.packets - before.packets;
        ensure!(arrived > 0, "nothing arrived");
        // Read one after the other: frames on their way, at most some batches, are no loss.
        let lost = (sent_after - sent_before).saturating_sub(arrived);
        let pps = arrived as f64 / took.as_secs_f64();
        Ok(Measured { pps, lost: if lost * 1000 < arrived { 0 } else { lost }, wrong: after.wrong })
    })
}
