//! Commands with readable errors, and children that do not outlive their owner.

use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long something may take that is waited for. When all is well that costs nothing, so it is for the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Debian packages of the programs that tests and demo use; said when one is missing.
const PACKAGES: &[(&str, &str)] = &[
    ("chrt", "util-linux"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("nmap", "nmap"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("ss", "iproute2"),
    ("tracepath", "iputils-tracepath"),
    ("traceroute", "traceroute"),
    ("turnserver", "coturn"),
    ("turnutils_natdiscovery", "coturn"),
];

/// The Debian package that has `program`.
pub fn package_of(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started (naming the package to install) or fails: the command line and its last words.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever its exit code.
///
/// # Errors
/// When it cannot be started, naming the package to install.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{}", missing(&command.get_program().to_string_lossy()))
        }
        other => other.with_context(|| format!("cannot start `{}`", line(command)))?,
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    // nsenter starts the program, so the missing one shows in its words.
    if let Some((_, rest)) = errors.split_once("nsenter: failed to execute ") {
        bail!("{}", missing(rest.split(':').next().unwrap_or_default()));
    }
    Ok(output)
}

/// One line: the command and what it said.
fn failure(command: &Command, output: &Output) -> String {
    let said = [&output.stderr[..], &output.stdout[..]].concat();
    format!("`{}` failed ({}): {}", line(command), output.status, String::from_utf8_lossy(&said).trim())
}

fn missing(program: &str) -> String {
    format!("`{program}` is not installed: run `apt-get install {}`", package_of(program))
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A child process that is killed when this value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    line: String,
}

impl Running {
    /// Starts a command; what it prints is kept for [`Running::finish`].
    ///
    /// # Errors
    /// When it cannot be started, naming the package to install.
    pub fn start(command: &mut Command) -> Result<Self> {
        let line = line(command);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn() {
            Ok(child) => Ok(Self { child: Some(child), line }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{}", missing(&command.get_program().to_string_lossy()))
            }
            Err(error) => Err(error).with_context(|| format!("cannot start `{line}`")),
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits for its end and returns what it printed on stdout.
    ///
    /// # Errors
    /// When it failed: the command line and its last words.
    pub fn finish(mut self) -> Result<String> {
        let child = self.child.take().expect("only finish() and drop take the child");
        let output = child.wait_with_output().with_context(|| format!("cannot wait for `{}`", self.line))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed ({}): {} {}", self.line, output.status, errors.trim(), said.trim());
        }
        Ok(said)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only when it has ended already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits up to `limit` for a child's end.
///
/// # Errors
/// When it still runs then.
pub fn wait_for_end(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child process")? {
            return Ok(status);
        }
        if begun.elapsed() > limit {
            bail!("process {} still runs after {} s", child.id(), limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks every 20 ms until `condition` holds.
///
/// # Errors
/// When it does not hold within `limit`; `what` says what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(true) => return Ok(()),
            Err(error) if begun.elapsed() > limit => return Err(error).with_context(|| format!("waited for {what}")),
            Ok(false) if begun.elapsed() > limit => bail!("waited {} s in vain for {what}", limit.as_secs()),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
