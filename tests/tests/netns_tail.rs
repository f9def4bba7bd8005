//! `forwarder flow-logs tail`: what goes through the forwarder is seen while it does, filtered, in the format asked for; it ends
//! when it should, and who does not read does not matter to anybody else.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_for_end, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{Family, Lab, SMALL_TABLE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A tail at work. Its own output is read line by line.
struct Tail {
    child: Child,
    /// Its output, as long as it is read.
    out: Option<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        let mut command: Command = lab.appliance.command(&[&["flow-logs", "tail"], arguments].concat())?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let out = child.stdout.take().map(BufReader::new);
        Ok(Self { child, out })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.as_mut().context("nobody reads")?.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the output ended with {line:?}");
        Ok(line.trim_end().to_owned())
    }

    /// Waits for its end; its words and whether all was well.
    fn end(mut self) -> Result<(String, bool)> {
        let status = wait_for_end(&mut self.child, PATIENCE)?;
        let mut said = String::new();
        self.child.stderr.take().context("stderr is piped")?.read_to_string(&mut said)?;
        Ok((said, status.success()))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // Gone already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lab() -> Result<Lab> {
    Lab::with_config(Options::default(), SMALL_TABLE)
}

/// Sends until it is told to stop, from a socket of the client's own to both ports of the server.
fn talk<T>(lab: &Lab, until: impl FnOnce() -> Result<T>) -> Result<T> {
    let server = lab.server(Family::V4);
    let socket = lab.client().enter(|| Ok(UdpSocket::bind((lab.net.client_v4(0), 0))?))?;
    let talking = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while talking.load(std::sync::atomic::Ordering::Relaxed) {
                for port in [9000, 9001] {
                    // A moment without room in the queue is no failure.
                    let _ = socket.send_to(&[0; 100], (server, port));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let done = until();
        talking.store(false, std::sync::atomic::Ordering::Relaxed);
        done
    })
}

#[test]
fn records_are_followed_live_filtered_and_formatted() -> Result<()> {
    let lab = lab()?;
    let _server = serve::udp_echo(&lab.net.server, &[9000, 9001])?;
    let client = lab.net.client_v4(0).to_string();
    // As people type it, without quotes.
    let filter = ["pkt-srcaddr", &client, "and", "dstport", "9001", "and", "flow-direction", "ingress"];
    let format = "${pkt-srcaddr} ${dstport} ${packets} ${bytes} ${action} ${nat-srcaddr} ${interface-id}";
    let mut text = Tail::start(&lab, &[&filter[..], &["--format", format]].concat())?;
    let json = Tail::start(&lab, &["src 10.0.0.0/8 and port 9000 and egress-less", "--json"])?;
    talk(&lab, || {
        for _ in 0..3 {
            let line = text.line()?;
            let fields: Vec<_> = line.split(' ').collect();
            let [source, port, packets, bytes, action, public, interface] = fields[..] else {
                anyhow::bail!("{line} has not the fields of {format}")
            };
            ensure!((source, port, action) == (client.as_str(), "9001", "ACCEPT"), "{line}");
            ensure!(public == lab.net.public_v4(0).to_string() && interface == lab.net.inside(0), "{line}");
            let (packets, bytes): (u64, u64) = (packets.parse()?, bytes.parse()?);
            ensure!(packets > 0 && bytes == packets * (100 + 28), "{line}");
        }
        Ok(())
    })?;
    let (said, fine) = json.end()?;
    ensure!(!fine && said.contains("`egress-less`"), "a filter that is none is refused: {said}");
    text.signal(Signal::SIGINT)?;
    let (said, fine) = text.end()?;
    ensure!(fine && said.is_empty(), "SIGINT ends it in peace: {said}");
    Ok(())
}

#[test]
fn it_ends_with_its_reader_and_with_the_forwarder() -> Result<()> {
    let mut lab = lab()?;
    let _server = serve::udp_echo(&lab.net.server, &[9000, 9001])?;
    let mut json = Tail::start(&lab, &["dst", "port", "9000", "--json"])?;
    let line = talk(&lab, || json.line())?;
    let record: serde_json::Value = serde_json::from_str(&line)?;
    ensure!(record["dstport"] == 9000 && record["action"] == "ACCEPT" && record["version"] == 2, "{record}");
    // Nothing comes any more; that the reader goes is noticed all the same.
    let mut silent = Tail::start(&lab, &["port 1"])?;
    std::thread::sleep(Duration::from_millis(300));
    silent.out = None;
    ensure!(silent.end()?.1, "a pipe without reader is a reason to end, not to fail");
    lab.appliance.stop()?;
    while let Ok(line) = json.line() {
        ensure!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
    }
    let (said, fine) = json.end()?;
    ensure!(fine && said.contains("has ended"), "{said}");
    Ok(())
}

/// A reader that reads nothing: the forwarder goes on as if there were none, and does not grow.
#[test]
fn who_does_not_read_misses_records_and_holds_up_nobody() -> Result<()> {
    let mut lab = lab()?;
    let _server = serve::udp_echo(&lab.net.server, &[9000, 9001])?;
    // A line as long as it can be, so that the pipe is soon full.
    let mut slow = Tail::start(&lab, &["--json"])?;
    let mut other = Tail::start(&lab, &["dstport", "9001"])?;
    let id = lab.appliance.id()?;
    let memory = || resident(id);
    talk(&lab, || {
        other.line()?;
        let before = memory()?;
        let begun = Instant::now();
        let mut records = 0;
        while begun.elapsed() < Duration::from_secs(6) || records < 5 {
            other.line()?;
            records += 1;
        }
        let after = memory()?;
        ensure!(after < before + (8 << 20), "the controller grew from {before} to {after} bytes");
        lab.appliance.status().map(drop)
    })?;
    slow.signal(Signal::SIGINT)?;
    // It may be in the middle of a write that nobody takes.
    let status = wait_for_end(&mut slow.child, PATIENCE)?;
    ensure!(status.success(), "SIGINT ended it with {status}");
    other.signal(Signal::SIGINT)?;
    other.end()?;
    Ok(())
}

/// Memory of a process, bytes (proc_pid_status(5)).
fn resident(id: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Destinations are in the status, with what they took and what ails them.
#[test]
fn the_status_has_every_destination() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"1s\"\n\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"{0}/all\"\nfilter = \"udp and dst port 9001\"\n\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"/dev/full\"\n",
        directory.path().display()
    );
    let lab = Lab::with_config(Options::default(), &config)?;
    let _server = serve::udp_echo(&lab.net.server, &[9000, 9001])?;
    let all = directory.path().join("all");
    let destinations = || -> Result<[serde_json::Value; 2]> {
        let list = lab.appliance.status()?.json["flow_logs"].as_array().cloned().context("no /flow_logs")?;
        list.try_into().map_err(|list| anyhow::anyhow!("two destinations: {list:?}"))
    };
    talk(&lab, || {
        wait_until("records here, and losses there", PATIENCE, || {
            let [good, bad] = destinations()?;
            let written = std::fs::read_to_string(&all)?.lines().filter(|line| line.ends_with("OK")).count();
            Ok(good["records"].as_u64() > Some(1) && bad["lost"].as_u64() > Some(0) && written > 1)
        })
    })?;
    let [good, bad] = destinations()?;
    ensure!(good["records"].as_u64() > Some(1) && good["lost"] == 0 && good["error"].is_null(), "{good}");
    ensure!(bad["lost"].as_u64() > Some(0) && bad["error"].is_string(), "{bad}");
    let page = lab.appliance.ask(&["status"])?;
    ensure!(page.contains("/all: ") && page.contains("last error: "), "{page}");
    // The filter's language is the tail's.
    let text = std::fs::read_to_string(&all)?;
    let packets = text.lines().filter(|line| line.ends_with("OK"));
    for line in packets.clone() {
        let fields: Vec<_> = line.split(' ').collect();
        ensure!(fields[6] == "9001" && fields[7] == "17", "{line}");
    }
    ensure!(packets.count() > 1, "{text}");
    Ok(())
}
