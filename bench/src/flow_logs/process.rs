//! What a process takes, by proc(5).

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::path::PathBuf;

/// A process.
#[derive(Debug)]
pub(super) struct Process(PathBuf);

impl Process {
    /// The one with this id.
    pub(super) fn of(id: u32) -> Self {
        Self(format!("/proc/{id}").into())
    }

    /// CPU time of all its threads up to now, seconds.
    pub(super) fn cpu_s(&self) -> Result<f64> {
        let stat = self.read("stat")?;
        // pid (name, which may hold anything) state …: utime and stime are the 12th and 13th behind the name.
        let words = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(2));
        let ticks = words.context("no times in stat")?.map(|word| Ok(word.parse::<u64>()?)).sum::<Result<u64>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no length of a tick")?;
        Ok(ticks as f64 / per_second as f64)
    }

    /// The most memory it has had, MiB (`VmHWM`).
    pub(super) fn peak_mib(&self) -> Result<f64> {
        self.memory_mib("VmHWM:")
    }

    /// The memory that it has for itself alone, MiB (`RssAnon`).
    pub(super) fn anonymous_mib(&self) -> Result<f64> {
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

    #[test]
    fn this_process_takes_something() {
        let process = Process::of(std::process::id());
        let before = process.cpu_s().unwrap();
        let mut sum = 0_u64;
        while process.cpu_s().unwrap() <= before {
            sum = (0..100_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31) ^ n);
        }
        assert!(process.peak_mib().unwrap() >= process.anonymous_mib().unwrap(), "{sum}");
        assert!(Process::of(u32::MAX).cpu_s().is_err());
    }
}
