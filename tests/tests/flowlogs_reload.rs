//! `[flow_logs]` changes with a reload, under traffic: old and new records together are what was sent, to the packet.

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::records::{Record, read, sum};
use forwarder_tests::{Lab, SMALL_TABLE};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const A: &str = "${interface-id} ${flow-direction} ${srcport} ${dstport} ${packets} ${bytes} ${log-status}";
const B: &str =
    "${log-status} ${bytes} ${packets} ${dstport} ${interface-id} ${flow-direction} ${action} ${account-id}";
const SIZE: u64 = 100 + 28;

/// Destinations `file` by their names' last letters: interval, format, filter.
struct Logs(PathBuf);

impl Logs {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("flow-{name}.log"))
    }

    fn destination(&self, name: &str, interval: u64, format: &str, filter: &str) -> String {
        format!(
            "[[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\ninterval = \"{interval}s\"\nformat = \"{format}\"\n\
             filter = \"{filter}\"\n",
            self.path(name).display()
        )
    }
}

fn reload(lab: &Lab, more: &str) -> Result<String> {
    lab.appliance.write_config(&format!("{}{SMALL_TABLE}{more}", lab.net.config()))?;
    lab.appliance.ask(&["reload"])
}

/// Datagrams from one port after the other, some flows long and some of one datagram, until it is told to end.
fn send(lab: &Lab, sent: &AtomicU64, ends: &AtomicBool) -> Result<()> {
    let to = SocketAddr::new(lab.net.server_v4().into(), 9001);
    lab.client().enter(|| {
        let long = UdpSocket::bind((lab.net.client_v4(0), 4000))?;
        for port in (10_000..60_000).cycle() {
            if ends.load(Ordering::Relaxed) {
                break;
            }
            long.send_to(&[0; 100], to)?;
            UdpSocket::bind((lab.net.client_v4(0), port))?.send_to(&[0; 100], to)?;
            sent.fetch_add(2, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

/// Runs `during` while datagrams are sent; returns how many were. Nothing is logged of the neighbours' first packets.
fn under_traffic(lab: &Lab, during: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<u64> {
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    let (sent, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(lab, &sent, &ends));
        let done = during(&sent);
        ends.store(true, Ordering::Relaxed);
        let sending = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.and(sending)
    })?;
    Ok(sent.load(Ordering::Relaxed))
}

/// What the client sent, as it came in and as it left.
fn logged(lab: &Lab, records: &[Record]) -> [(u64, u64); 2] {
    [(lab.net.inside(0), "ingress"), (lab.net.outside().to_owned(), "egress")].map(|(interface, direction)| {
        sum(records, |record| {
            record["interface-id"] == interface && record["flow-direction"] == direction && record["dstport"] == "9001"
        })
    })
}

fn nothing_lost(records: &[Record]) -> Result<()> {
    ensure!(records.iter().all(|record| record["log-status"] != "SKIPDATA"), "something is said to be lost");
    Ok(())
}

/// The lines of a file that changed its format on the way, each by the format whose number of fields it has.
fn read_both(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path)?;
    let directory = tempfile::tempdir()?;
    let mut records = Vec::new();
    for format in [A, B] {
        let fields = format.split(' ').count();
        let lines = text.lines().filter(|line| line.split(' ').count() == fields);
        let part = directory.path().join("part");
        std::fs::write(&part, lines.map(|line| format!("{line}\n")).collect::<String>())?;
        let read = read(&part, format)?;
        ensure!(!read.is_empty(), "nothing in {} has the format {format}", path.display());
        records.extend(read);
    }
    ensure!(records.len() == text.lines().count(), "{} has lines of no format", path.display());
    Ok(records)
}

/// `a` stays and changes everything but its place, `b` goes, `c` comes, `d` stays as it is.
#[test]
fn old_and_new_records_add_up_to_what_was_sent() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let logs = Logs(directory.path().to_owned());
    let stays = logs.destination("d", 2, A, "all");
    let before = [logs.destination("a", 1, A, "all"), logs.destination("b", 5, A, "all"), stays.clone()].concat();
    let after = [logs.destination("a", 3, B, "accept"), logs.destination("c", 7, A, "all"), stays].concat();
    let mut lab = Lab::with_config(Options::default(), &format!("{SMALL_TABLE}{before}"))?;
    let _server = serve::udp_sink(&lab.net.server, 9001)?;
    let sent = under_traffic(&lab, |sent| {
        std::thread::sleep(Duration::from_millis(2300));
        let said = reload(&lab, &format!("[flow_logs]\naccount_id = \"123456789012\"\n{after}"))?;
        ensure!(said.contains("reloaded") && !said.contains("flow logs"), "{said}");
        std::thread::sleep(Duration::from_millis(2300));
        wait_until("datagrams to be many", PATIENCE, || Ok(sent.load(Ordering::Relaxed) > 1000))
    })?;
    let names: Vec<_> = lab.appliance.ask(&["status"])?.lines().map(str::to_owned).collect();
    for (name, is_there) in [("a", true), ("b", false), ("c", true), ("d", true)] {
        let path = logs.path(name).display().to_string();
        ensure!(names.iter().any(|line| line.contains(&path)) == is_there, "{name}: {names:?}");
    }
    lab.appliance.stop()?;
    let [a, b, c, d] =
        [read_both(&logs.path("a"))?, read(&logs.path("b"), A)?, read(&logs.path("c"), A)?, read(&logs.path("d"), A)?];
    let expected = [(sent, sent * SIZE); 2];
    for (name, records) in [("a", &a), ("d", &d), ("b and c", &[b, c].concat())] {
        nothing_lost(records)?;
        ensure!(logged(&lab, records) == expected, "{name}: {:?} instead of {expected:?}", logged(&lab, records));
    }
    let named = a.iter().filter_map(|record| record.get("account-id"));
    ensure!(named.clone().count() > 0 && named.into_iter().all(|id| id == "123456789012"), "the account is not named");
    Ok(())
}

/// The same many times over, with intervals that come back and destinations that come and go.
#[test]
fn a_hundred_changes_lose_and_double_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let logs = Logs(directory.path().to_owned());
    let config = |round: u64| {
        let own = ["even", "odd"][(round % 2) as usize];
        logs.destination("stays", 1 + round % 3, A, "all") + &logs.destination(own, 1 + round % 2, A, "all")
    };
    let mut lab = Lab::with_config(
        Options::default(),
        &format!("{SMALL_TABLE}[timeouts]\nudp = \"1s\"\nudp_stream = \"1s\"\n{}", config(0)),
    )?;
    let _server = serve::udp_sink(&lab.net.server, 9001)?;
    let sent = under_traffic(&lab, |_| {
        for round in 1..=100 {
            let more = format!("[timeouts]\nudp = \"1s\"\nudp_stream = \"1s\"\n{}", config(round));
            // One that has just gone may still be at its last records.
            wait_until("the change to be taken", PATIENCE, || Ok(reload(&lab, &more).is_ok()))?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    })?;
    lab.appliance.stop()?;
    let of = |name: &str| read(&logs.path(name), A).with_context(|| name.to_owned());
    let expected = [(sent, sent * SIZE); 2];
    for (name, records) in [("stays", of("stays")?), ("even and odd", [of("even")?, of("odd")?].concat())] {
        nothing_lost(&records)?;
        ensure!(logged(&lab, &records) == expected, "{name}: {:?} instead of {expected:?}", logged(&lab, &records));
    }
    Ok(())
}

/// On from nothing, and off again: between the two every packet, before and after none.
#[test]
fn on_and_off() -> Result<()> {
    const EACH: u64 = 300;
    let directory = tempfile::tempdir()?;
    let logs = Logs(directory.path().to_owned());
    let mut lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let _server = serve::udp_sink(&lab.net.server, 9001)?;
    lab.client().run("ping", "-c 3 -i 0.2 -W 2 -q 203.0.113.10")?;
    // One flow through all of it.
    let socket = lab.client().enter(|| Ok(UdpSocket::bind((lab.net.client_v4(0), 4000))?))?;
    let to = SocketAddr::new(lab.net.server_v4().into(), 9001);
    let send = || (0..EACH).try_for_each(|_| socket.send_to(&[0; 100], to).map(drop));
    let on = logs.destination("on", 600, A, "all");
    for round in 1..=2 {
        send()?;
        reload(&lab, &on)?;
        send()?;
        reload(&lab, "")?;
        send()?;
        wait_until("the last records", PATIENCE, || {
            let records = read(&logs.path("on"), A)?;
            Ok(logged(&lab, &records) == [(round * EACH, round * EACH * SIZE); 2])
        })?;
    }
    lab.appliance.stop()?;
    let records = read(&logs.path("on"), A)?;
    nothing_lost(&records)?;
    ensure!(logged(&lab, &records) == [(2 * EACH, 2 * EACH * SIZE); 2], "{:?}", logged(&lab, &records));
    Ok(())
}

/// A place where nothing can be written: one line says so, and all goes on as it was, the good parts of the new file included.
#[test]
fn what_cannot_be_opened_changes_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let logs = Logs(directory.path().to_owned());
    let good = logs.destination("good", 1, A, "all");
    let mut lab = Lab::with_config(Options::default(), &format!("{SMALL_TABLE}{good}"))?;
    let _server = serve::udp_sink(&lab.net.server, 9001)?;
    std::fs::write(directory.path().join("file"), "")?;
    let bad = Logs(directory.path().join("file")).destination("bad", 3, A, "all");
    let changed = logs.destination("good", 5, B, "reject") + &logs.destination("other", 1, A, "all");
    let deny = "[[firewall.rule]]\nname = \"none\"\naction = \"deny\"\nprotocol = \"udp\"\n";
    let sent = under_traffic(&lab, |_| {
        for _ in 0..3 {
            let why = reload(&lab, &format!("{changed}{bad}{deny}")).err().context("a bad place was taken")?;
            let why = format!("{why:#}");
            let line = why.lines().find(|line| line.contains("cannot open the flow log destination file"));
            ensure!(line.is_some_and(|line| line.contains("flow-bad.log: ")), "{why}");
            std::thread::sleep(Duration::from_millis(400));
        }
        Ok(())
    })?;
    ensure!(!lab.appliance.ask(&["status"])?.contains("flow-other"), "half of it was applied");
    lab.appliance.stop()?;
    let records = read(&logs.path("good"), A)?;
    nothing_lost(&records)?;
    ensure!(logged(&lab, &records) == [(sent, sent * SIZE); 2], "{sent}: {:?}", logged(&lab, &records));
    let other = std::fs::read_to_string(logs.path("other")).unwrap_or_default();
    ensure!(other.is_empty(), "what was refused has records: {other}");
    Ok(())
}
