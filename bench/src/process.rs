//! What a process and its threads take, by proc(5).

use anyhow::{Context, Result, bail};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::path::PathBuf;

/// A process.
#[derive(Debug)]
pub(crate) struct Process(PathBuf);

impl Process {
    /// The one with this id.
    pub(crate) fn of(id: u32) -> Self {
        Self(format!("/proc/{id}").into())
    }

    /// CPU time of all its threads up to now, seconds.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        let stat = self.read("stat")?;
        // pid (name, which may hold anything) state …: utime and stime are the 12th and 13th behind the name.
        let words = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(2));
        let ticks = words.context("no times in stat")?.map(|word| Ok(word.parse::<u64>()?)).sum::<Result<u64>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no length of a tick")?;
        Ok(ticks as f64 / per_second as f64)
    }

    /// CPU time up to now of its thread of this name, seconds.
    pub(crate) fn thread_cpu_s(&self, name: &str) -> Result<f64> {
        let threads = self.0.join("task");
        for thread in fs::read_dir(&threads).with_context(|| format!("cannot list {}", threads.display()))? {
            let thread = Self(thread?.path());
            if thread.read("comm")?.trim_end() == name {
                // Nanoseconds on a CPU, waiting for one, turns (kernel, Documentation/scheduler/sched-stats.rst).
                let stat = thread.read("schedstat")?;
                let ns: u64 =
                    stat.split_whitespace().next().unwrap_or_default().parse().context("no time in schedstat")?;
                return Ok(ns as f64 / 1e9);
            }
        }
        bail!("no thread `{name}` in {}", threads.display())
    }

    /// The memory that it has now, with what it shares, MiB (`VmRSS`).
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// The most memory it has had, MiB (`VmHWM`).
    pub(crate) fn peak_mib(&self) -> Result<f64> {
        self.memory_mib("VmHWM:")
    }

    /// The memory that it has for itself alone, MiB (`RssAnon`).
    pub(crate) fn anonymous_mib(&self) -> Result<f64> {
        self.memory_mib("RssAnon:")
    }

    fn memory_mib(&self, name: &str) -> Result<f64> {
        let status = self.read("status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kib: f64 = value.trim().trim_end_matches(" kB").parse().with_context(|| format!("{name} {value}"))?;
        Ok(kib / 1024.0)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn this_process_takes_something() {
        let process = Process::of(std::process::id());
        let before = process.cpu_s().unwrap();
        let mut sum = 0_u64;
        while process.cpu_s().unwrap() <= before {
            sum = black_box((0..100_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31) ^ n));
        }
        // Other tests of this process come and go meanwhile, so nothing but a least is certain. The kernel's own count may be
        // some hundred KiB behind (mm/memory.c, `percpu_counter`).
        let block = black_box(vec![1_u8; 64 << 20]);
        for mib in [process.anonymous_mib(), process.resident_mib(), process.peak_mib()] {
            assert!(mib.as_ref().is_ok_and(|mib| *mib > 60.0), "{mib:?} of {} bytes", block.len());
        }
        assert!(Process::of(u32::MAX).cpu_s().is_err());
    }

    #[test]
    fn threads_are_told_by_their_names() {
        let process = Process::of(std::process::id());
        let busy = || {
            let begun = std::time::Instant::now();
            while process.thread_cpu_s("quite busy").unwrap() < 0.02 {
                assert!(begun.elapsed().as_secs() < 60, "it does not get on");
            }
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("quite busy".to_owned()).spawn_scoped(scope, busy);
            thread.unwrap().join().unwrap();
        });
        assert!(process.thread_cpu_s("nobody").is_err());
    }
}
