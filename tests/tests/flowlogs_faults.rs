//! Flow logs when things go wrong: a controller killed in mid-window, and a full disk. Nothing is double, what was lost is
//! declared.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, run, wait_until};
use forwarder_kit::serve;
use forwarder_tests::{Lab, SMALL_TABLE};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn lab(log: &Path) -> Result<Lab> {
    let config = format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"2s\"\n[[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\n",
        log.display()
    );
    Lab::with_config(forwarder_kit::topology::Options::default(), &config)
}

/// Flows of one packet.
const SINGLES: usize = 100;

/// One packet each from many ports on.
fn single_packets(lab: &Lab, from: u16) -> Result<u64> {
    lab.client().enter(|| {
        for port in (from..).take(SINGLES) {
            UdpSocket::bind((lab.net.client_v4(0), port))?.send_to(&[0; 100], (lab.net.server_v4(), 9000))?;
        }
        Ok(SINGLES as u64)
    })
}

/// Packets that left for the server from ports that are meant, by the records, and how many records say that something was
/// lost.
fn read(log: &Path, is_meant: impl Fn(u16) -> bool) -> Result<(u64, usize)> {
    let text = std::fs::read_to_string(log)?;
    ensure!(text.ends_with('\n'), "the last line is torn");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    ensure!(lines.iter().all(|line| line.len() == 14), "{text}");
    let out = lines.iter().filter(|line| line[4] == "203.0.113.10" && line[6] == "9000");
    let out = out.filter(|line| line[5].parse().is_ok_and(&is_meant));
    let packets = out.map(|line| line[8].parse::<u64>().context("no number")).sum::<Result<u64>>()?;
    Ok((packets, lines.iter().filter(|line| line[13] == "SKIPDATA").count()))
}

/// `count` questions from one socket, so over one flow.
fn ask(socket: &UdpSocket, count: u64) -> Result<()> {
    let mut buffer = [0; 200];
    for number in 0..count {
        socket.send(&[0; 100])?;
        socket.recv(&mut buffer).with_context(|| format!("question {number} was not answered"))?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn socket(lab: &Lab) -> Result<UdpSocket> {
    lab.client().enter(|| {
        let socket = UdpSocket::bind((lab.net.client_v4(0), 0))?;
        socket.connect(SocketAddr::new(lab.net.server_v4().into(), 9000))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

#[test]
fn a_killed_controller_doubles_nothing_and_its_packets_are_logged_by_the_next() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flow.log");
    let mut lab = lab(&log)?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    let socket = socket(&lab)?;
    let (mut sent, mut singles) = (0, 0);
    for round in 0..3 {
        ask(&socket, 700 + round * 100)?;
        singles += single_packets(&lab, 20_000 + 1000 * round as u16)?;
        lab.appliance.kill9()?;
        // Nobody logs, and the datapath goes on counting.
        ask(&socket, 50)?;
        sent += 750 + round * 100;
        lab.appliance.start_again()?;
    }
    lab.appliance.stop()?;
    let (logged, lost) = read(&log, |port| port == socket.local_addr().map_or(0, |own| own.port()))?;
    // Of each of these it can be seen by itself: a total may be right because one is missing for one that is double.
    let mut once = 0;
    for port in (0..3).flat_map(|round| (20_000 + 1000 * round..).take(SINGLES)) {
        let (packets, _) = read(&log, |other| other == port)?;
        ensure!(packets <= 1, "the packet from port {port} is logged {packets} times");
        once += packets;
    }
    ensure!(once == singles || lost > 0, "{once} of {singles} flows logged, and nobody says that the rest is lost");
    ensure!(logged <= sent, "{logged} logged of {sent}: something is double");
    ensure!(logged == sent || lost > 0, "{logged} logged of {sent}, and nobody says that the rest is lost");
    Ok(())
}

#[test]
fn a_full_disk_is_survived_and_declared() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk");
    std::fs::create_dir(&disk)?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk))?;
    let outcome = on_a_small_disk(&disk);
    run(Command::new("umount").arg(&disk))?;
    outcome
}

fn on_a_small_disk(disk: &Path) -> Result<()> {
    let (log, ballast) = (disk.join("flow.log"), disk.join("ballast"));
    let mut lab = lab(&log)?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    let socket = socket(&lab)?;
    ask(&socket, 100)?;
    // As much as fits, and a page of it given back at the end.
    let full = std::fs::write(&ballast, vec![0; 128 << 10]);
    ensure!(full.is_err(), "the disk takes more than it has");
    for port in 0..200 {
        // Many flows, so that their records are more than the page that the log has begun.
        let from = SocketAddr::new(lab.net.client_v4(0).into(), 20_000 + port);
        let other = lab.client().enter(|| Ok(UdpSocket::bind(from)?))?;
        other.send_to(&[0; 100], (lab.net.server_v4(), 9000))?;
    }
    wait_until("a word about the full disk", PATIENCE, || Ok(lab.appliance.log().contains("loses records")))
        .with_context(|| lab.appliance.log())?;
    std::fs::remove_file(&ballast)?;
    ask(&socket, 100)?;
    wait_until("the losses to be declared", PATIENCE, || Ok(read(&log, |_| true)?.1 >= 2))?;
    lab.appliance.stop()?;
    let (logged, lost) = read(&log, |_| true)?;
    ensure!(logged <= 400 && lost >= 2, "{logged} packets and {lost} losses in the log");
    Ok(())
}
