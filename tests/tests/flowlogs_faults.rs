//! Flow logs when things go wrong: a controller killed in mid-window, and a full disk. Nothing is double, what was lost is
//! declared.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::run;
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

/// Packets that left for the server by the records, and how many records say that something was lost.
fn read(log: &Path) -> Result<(u64, usize)> {
    let text = std::fs::read_to_string(log)?;
    ensure!(text.ends_with('\n'), "the last line is torn");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    ensure!(lines.iter().all(|line| line.len() == 14), "{text}");
    let out = lines.iter().filter(|line| line[4] == "203.0.113.10" && line[6] == "9000");
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
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
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
    let mut sent = 0;
    for round in 0..3 {
        ask(&socket, 700 + round * 100)?;
        lab.appliance.kill9()?;
        // Nobody logs, and the datapath goes on counting.
        ask(&socket, 50)?;
        sent += 750 + round * 100;
        lab.appliance.start_again()?;
    }
    lab.appliance.stop()?;
    let (logged, lost) = read(&log)?;
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
    std::thread::sleep(Duration::from_secs(5));
    ensure!(
        lab.appliance.log().contains("loses records"),
        "nobody says that the disk is full: {}",
        lab.appliance.log()
    );
    std::fs::remove_file(&ballast)?;
    ask(&socket, 100)?;
    std::thread::sleep(Duration::from_secs(5));
    lab.appliance.stop()?;
    let (logged, lost) = read(&log)?;
    ensure!(logged <= 400 && lost >= 2, "{logged} packets and {lost} losses in the log");
    Ok(())
}
