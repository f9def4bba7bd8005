//! The real binary as a process in a namespace: started, asked, stopped, killed.
//!
//! Each has an instance name of its own, so state directories and pins of parallel tests do not meet. What the answers
//! look like is known to [`crate::status`] only.

use crate::netns::{Netns, unique};
use crate::run::{PATIENCE, output, run, wait_for_end, wait_until};
use crate::status::{Flow, Status};
use crate::topology::Topology;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The `forwarder` binary: `FORWARDER_BIN`, or the one that cargo built next to this executable.
///
/// # Errors
/// When there is none; says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FORWARDER_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("cannot find the own executable")?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("forwarder"));
    beside.into_iter().find(|path| path.is_file()).with_context(|| {
        format!("no `forwarder` beside {}: run `cargo build -p forwarder` with the same profile first", own.display())
    })
}

/// A `forwarder run` in a namespace. Dropping it ends the process and removes what its instance left on the machine.
#[derive(Debug)]
pub struct Appliance {
    instance: String,
    netns: PathBuf,
    directory: TempDir,
    child: Option<Child>,
    environment: Vec<(String, String)>,
}

impl Appliance {
    /// Starts it on a topology, with the topology's interfaces and `more` as the rest of the config, and waits until it
    /// answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time: its log.
    pub fn start(topology: &Topology, more: &str) -> Result<Self> {
        Self::start_in(&topology.appliance, &format!("{}{more}", topology.config()))
    }

    /// Starts it in a namespace with this config, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time: its log.
    pub fn start_in(netns: &Netns, config: &str) -> Result<Self> {
        let mut appliance = Self::prepare(netns, config)?;
        appliance.start_again()?;
        Ok(appliance)
    }

    /// Writes the config, but starts nothing yet.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn prepare(netns: &Netns, config: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let appliance =
            Self { instance: unique(), netns: netns.path(), directory, child: None, environment: Vec::new() };
        appliance.write_config(config)?;
        Ok(appliance)
    }

    /// Replaces the config file; takes effect at the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, config: &str) -> Result<()> {
        fs::write(self.config_path(), config).context("cannot write the config")
    }

    /// Gives the process environment variables; takes effect at the next start.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        self.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// Starts the process and waits until it answers: for [`Appliance::prepare`], and after a stop or a kill.
    ///
    /// # Errors
    /// When it ends or does not answer in time: its log.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.instance);
        let log = File::options().create(true).append(true).open(self.log_path()).context("cannot open the log")?;
        let mut command = self.command(&["run", "--config"])?;
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg(self.config_path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("cannot start nsenter: run `apt-get install util-linux`")?);
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process()?.try_wait()? {
                self.child = None;
                bail!("`forwarder run` ended with {status}:\n{}", self.log());
            }
            match self.status() {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => {
                    bail!("`forwarder run` does not answer after {} s: {error:#}\n{}", PATIENCE.as_secs(), self.log())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Starts the process and waits for it to end by itself; for what it must refuse. Returns its exit and its words.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn run_to_end(&mut self) -> Result<Output> {
        let mut command = self.command(&["run", "--config"])?;
        let mut child = command
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start nsenter: run `apt-get install util-linux`")?;
        if let Err(error) = wait_for_end(&mut child, PATIENCE) {
            child.kill()?;
            child.wait()?;
            return Err(error).context("`forwarder run` should have refused");
        }
        child.wait_with_output().context("cannot read what `forwarder run` said")
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The process id of `forwarder run`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn id(&mut self) -> Result<u32> {
        Ok(self.process()?.id())
    }

    /// All it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A `forwarder` command for this instance, to be run in its namespace.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(binary()?);
        command.args(["--instance", &self.instance]).args(arguments);
        Ok(command)
    }

    /// Runs a `forwarder` command for this instance and returns what it printed.
    ///
    /// # Errors
    /// When it fails: its words.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments)?)
    }

    /// Runs a `forwarder` command for this instance, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_ask(&self, arguments: &[&str]) -> Result<Output> {
        output(&mut self.command(arguments)?)
    }

    /// `status --json`.
    ///
    /// # Errors
    /// When it fails, or prints something else than JSON.
    pub fn status(&self) -> Result<Status> {
        Status::parse(&self.ask(&["status", "--json"])?)
    }

    /// `flows list --json`.
    ///
    /// # Errors
    /// When it fails, or prints something else than JSON.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        Flow::parse_list(&self.ask(&["flows", "list", "--json"])?)
    }

    /// Waits until limits go by a pass of the sweeper that began after now.
    ///
    /// # Errors
    /// When there is none.
    pub fn wait_for_sweep(&self) -> Result<()> {
        // The next one that they go by may have begun before.
        (0..2).try_for_each(|_| self.wait_for_pass(PATIENCE))
    }

    /// Waits until limits go by another pass of the sweeper than now, whenever it began.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn wait_for_pass(&self, limit: Duration) -> Result<()> {
        let before = self.status()?.sweeps()?;
        wait_until("a pass of the sweeper", limit, || Ok(self.status()?.sweeps()? > before))
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// When it does not end in time, or not with exit code 0: its log.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.signal(Signal::SIGTERM)?;
        ensure!(status.success(), "SIGTERM ended `forwarder run` with {status}:\n{}", self.log());
        Ok(())
    }

    /// Ends it with SIGKILL; what is pinned stays.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL).map(drop)
    }

    /// Where its maps, programs and links are pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.instance)
    }

    /// A directory for files of a test, gone with this value.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        Path::new("/run").join(&self.instance)
    }

    fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        let child = self.process()?;
        let id = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive numbers"));
        kill(id, signal).with_context(|| format!("cannot send {signal} to process {id}"))?;
        let status = wait_for_end(child, PATIENCE).with_context(|| format!("after {signal}"))?;
        self.child = None;
        Ok(status)
    }

    fn process(&mut self) -> Result<&mut Child> {
        self.child.as_mut().with_context(|| format!("instance {} does not run", self.instance))
    }

    fn config_path(&self) -> PathBuf {
        self.directory.path().join("forwarder.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of instance {}:\n{}", self.instance, self.log());
        }
        if self.child.is_some() && self.signal(Signal::SIGTERM).is_err() {
            // It hangs; nothing more can be done in a drop than to end it and go on.
            let _ = self.kill9();
        }
        // Usually gone already; after kill9() they are what the next start would have adopted.
        let _ = fs::remove_dir_all(self.pins());
        let _ = fs::remove_dir_all(self.state());
    }
}
