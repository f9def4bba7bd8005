//! `forwarder top`: who talks most is the one that does, at the rate that it does; on a screen as well, and that screen is given
//! back whatever ends it.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, Running, wait_for_end, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{Family, Lab, SMALL_TABLE};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Connections of the second client, which say one word each.
const IDLE: usize = 30;
/// What iperf3 sends: a thousand datagrams a second, which are IP packets of 28 bytes more.
const PACKETS: f64 = 1000.0;
const BITS: f64 = PACKETS * 8.0 * 1028.0;

/// Two clients and what they do.
struct Busy {
    lab: Lab,
    _idle: Vec<UdpSocket>,
    _echo: serve::Served,
    _traffic: [Running; 2],
}

fn busy() -> Result<Busy> {
    // Nothing that is looked for ends meanwhile.
    let patient = format!("{SMALL_TABLE}[timeouts]\nudp = \"1h\"\nudp_stream = \"1h\"\n");
    let lab = Lab::with_config(Options { clients: 2, ..Options::default() }, &patient)?;
    let echo = serve::udp_echo(&lab.net.server, &[9000])?;
    let to = lab.server(Family::V4);
    let idle = lab.net.clients[1].enter(|| {
        let sockets = (0..IDLE).map(|_| {
            let socket = UdpSocket::bind((lab.net.client_v4(1), 0))?;
            socket.send_to(b"word", (to, 9000))?;
            Ok(socket)
        });
        sockets.collect()
    })?;
    let server = lab.net.server.spawn("iperf3", "-s")?;
    wait_until("iperf3 -s to listen", PATIENCE, || {
        Ok(lab.net.server.run("ss", "-Hlnt sport = 5201")?.contains("5201"))
    })?;
    let client = lab.client().spawn("iperf3", &format!("-c {to} -u -b 8M -l 1000 -t 3600"))?;
    wait_until("iperf3 to be at it", PATIENCE, || {
        Ok(lab.appliance.flows()?.iter().any(|flow| flow.protocol == 17 && flow.sent.0 > 1000))
    })?;
    Ok(Busy { lab, _idle: idle, _echo: echo, _traffic: [server, client] })
}

fn is_about(value: &Value, wanted: f64) -> bool {
    value.as_f64().is_some_and(|value| (value / wanted - 1.0).abs() < 0.15)
}

/// A measurement in which iperf3 had a CPU whenever it wanted to send. In each one it is the first, and has not sent more than
/// the flow table counted from before to after.
fn at_its_pace(lab: &Lab, measure: impl Fn() -> Result<Value>) -> Result<Value> {
    let sent = || -> Result<u64> {
        let flows = lab.appliance.flows()?;
        let flow = flows.iter().find(|flow| flow.protocol == 17 && flow.destination.port() == 5201);
        Ok(flow.context("iperf3 has no flow")?.sent.0)
    };
    let begun = Instant::now();
    loop {
        let before = sent()?;
        let top = measure()?;
        let most = (sent()? - before) as f64;
        let (seconds, first) = (top["seconds"].as_f64().context("no time")?, &top["talkers"][0]);
        let pps = first["originator"]["packets_per_second"].as_f64().context("no rate")?;
        ensure!(pps * seconds <= most + 1.0, "{pps} packet/s for {seconds} s are more than {most}: {top}");
        if is_about(&first["originator"]["packets_per_second"], PACKETS) || begun.elapsed() > PATIENCE {
            return Ok(top);
        }
    }
}

#[test]
fn the_biggest_talker_is_who_talks_most() -> Result<()> {
    let busy = busy()?;
    let lab = &busy.lab;
    let json = |arguments: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&lab.appliance.ask(&[&["top", "--once", "--json"], arguments].concat())?)?)
    };
    let (client, other) = (lab.net.client_v4(0).to_string(), lab.net.client_v4(1).to_string());
    let public = lab.net.public_v4(0).to_string();
    for sort in ["rate", "packets"] {
        let top = at_its_pace(lab, || json(&["--sort", sort]))?;
        let first = &top["talkers"][0];
        let end = |tuple: &str, end: &str| first[tuple][end].as_str().unwrap_or_default().to_owned();
        ensure!(first["protocol"] == "udp" && end("original", "source").starts_with(&format!("{client}:")), "{top}");
        ensure!(end("translated", "source").starts_with(&format!("{public}:")), "{top}");
        ensure!(end("original", "destination") == "203.0.113.10:5201", "{top}");
        ensure!(is_about(&first["originator"]["bits_per_second"], BITS), "not {BITS} bit/s: {top}");
        ensure!(is_about(&first["originator"]["packets_per_second"], PACKETS), "not {PACKETS} packet/s: {top}");
        ensure!(first["responder"]["packets_per_second"] == 0.0, "nobody answers iperf3's datagrams: {top}");
        let host = &top["hosts"][0];
        ensure!(host["address"] == client.as_str() && is_about(&host["sent"]["bits_per_second"], BITS), "{top}");
        ensure!(top["seconds"].as_f64().is_some_and(|seconds| (0.9..5.0).contains(&seconds)), "{top}");
    }
    let top = json(&["--sort", "connections", "--count", "1"])?;
    let hosts = top["hosts"].as_array().context("no hosts")?;
    ensure!(hosts.len() == 1 && hosts[0]["address"] == other.as_str() && hosts[0]["connections"] == IDLE, "{top}");
    ensure!(hosts[0]["sent"]["bits_per_second"] == 0.0, "{top}");
    let top = json(&["--address", &other])?;
    ensure!(top["connections"] == IDLE && top["talkers"] == serde_json::json!([]), "silent ones do not talk: {top}");
    // For people: the second line is the table's head.
    let page = lab.appliance.ask(&["top"])?;
    let row = page.lines().nth(2).unwrap_or_default();
    ensure!(row.starts_with(&format!("udp  {client}:")) && row.contains(&public), "{page}");
    let page = lab.appliance.ask(&["top", "--hosts", "--sort", "connections"])?;
    let row: Vec<_> = page.lines().nth(2).unwrap_or_default().split_whitespace().take(2).collect();
    ensure!(row == [other.as_str(), "30"], "{page}");
    Ok(())
}

/// It may be asked for by a few at a time, and a place is free again when one has gone.
#[test]
fn no_more_than_a_few_watch() -> Result<()> {
    let lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let mut screens = (0..4).map(|_| Screen::open(&lab)).collect::<Result<Vec<_>>>()?;
    for screen in &screens {
        screen.wait_for("0 connections,")?;
    }
    let refused = lab.appliance.try_ask(&["top", "--once"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && said.contains("too many watch"), "{said}");
    screens[0].end_by(|screen| screen.press("q"))?;
    wait_until("a place", PATIENCE, || Ok(lab.appliance.try_ask(&["top", "--once"])?.status.success()))
}

#[test]
fn the_screen_shows_it_and_is_given_back() -> Result<()> {
    let mut busy = busy()?;
    let public = format!("{}:", busy.lab.net.public_v4(0));
    let mut screens = (0..4).map(|_| Screen::open(&busy.lab)).collect::<Result<Vec<_>>>()?;
    for screen in &screens {
        screen.wait_for("\x1b[?1049h")?;
        screen.wait_for(&format!("{}:", busy.lab.net.client_v4(0)))?;
        screen.wait_for(&public)?;
        // Word by word, as blanks are not written where there are some.
        screen.wait_for("connections,")?;
    }
    // Another filter is another request, for which there is a place although all are taken.
    screens[0].press("/address 10.0.2.10")?;
    screens[0].wait_for("filter:")?;
    screens[0].press("\r")?;
    screens[0].wait_for("30 connections,")?;
    screens[0].end_by(|screen| screen.press("q"))?;
    screens[1].end_by(|screen| screen.signal(Signal::SIGINT))?;
    screens[2].end_by(|screen| screen.signal(Signal::SIGTERM))?;
    screens[3].end_by(|_| busy.lab.appliance.stop())?;
    screens[3].wait_for("the forwarder has ended")
}

/// A `forwarder top` in a terminal of its own.
struct Screen {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn open(lab: &Lab) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 140, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("no pseudo terminal")?;
        let before = tcgetattr(&pty.slave)?;
        let top = lab.appliance.command(&["top"])?;
        let mut command = Command::new("setsid");
        // Its controlling terminal, so that it finds no other one.
        command.arg("--ctty").arg(top.get_program()).args(top.get_args()).env("TERM", "xterm");
        command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave.try_clone()?);
        let child = command.spawn().context("cannot start setsid: run `apt-get install util-linux`")?;
        let (keys, shown) = (File::from(pty.master), Arc::new(Mutex::new(Vec::new())));
        let (mut screen, seen) = (keys.try_clone()?, shown.clone());
        // Ends with the terminal's other end, which is closed with the last of those who have it.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                seen.lock().expect("nobody panics with it").extend_from_slice(&buffer[..length]);
            }
        });
        Ok(Self { child, keys, terminal: pty.slave, before, shown })
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("nobody panics with it")).into_owned()
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        wait_until(text, PATIENCE, || Ok(self.shown().contains(text)))
            .with_context(|| format!("the screen has {:?}", self.shown()))
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// It ends in peace, and the terminal is as it was.
    fn end_by(&mut self, end: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        ensure!(tcgetattr(&self.terminal)? != self.before, "the terminal is not its own");
        end(self)?;
        let status = wait_for_end(&mut self.child, PATIENCE).with_context(|| self.shown())?;
        ensure!(status.success(), "it ended with {status}: {:?}", self.shown());
        self.wait_for("\x1b[?1049l")?;
        let shown = self.shown();
        ensure!(shown.rfind("\x1b[?1049l") > shown.rfind("\x1b[?1049h"), "{shown:?}");
        ensure!(shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "no cursor: {shown:?}");
        ensure!(tcgetattr(&self.terminal)? == self.before, "the terminal is not as it was");
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Gone already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
