//! Every command in its shortest form, with the real devices in namespaces: that it ends, that its report can be read, and
//! that what it says agrees with itself. Nothing here asks how fast anything is. Needs root.

use anyhow::{Context, Result, ensure};
use forwarder::host::Bpffs;
use forwarder_bench::report::Report;
use forwarder_kit::run::{PATIENCE, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{File, read_to_string};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};
use tempfile::TempDir;

/// Measurements share conntrack's size and pin themselves to CPUs: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn bench(words: &[&str], out: &Path) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forwarder-bench"));
    command.args(words).arg("--out").arg(out).env("FORWARDER_BIN", forwarder()?);
    command.output().context("cannot start forwarder-bench")
}

/// The product's binary, which cargo has put beside ours.
fn forwarder() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_BIN_EXE_forwarder-bench"));
    let path = own.with_file_name("forwarder");
    ensure!(path.exists(), "{} is not there: run `cargo build --workspace`", path.display());
    Ok(path)
}

/// Runs a measurement and reads its report.
fn report(words: &[&str]) -> Result<(Report, TempDir)> {
    let out = tempfile::tempdir()?;
    let ran = bench(words, out.path())?;
    ensure!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    let report = Report::read(&out.path().join("report.json"))?;
    let markdown = std::fs::read_to_string(out.path().join("report.md"))?;
    for table in &report.tables {
        for row in &table.rows {
            ensure!(row.rounds.iter().all(|round| round.is_finite()), "{row:?}");
            ensure!(!row.rounds.is_empty() && markdown.contains(row.label("device")), "{row:?} in {markdown}");
        }
    }
    Ok((report, out))
}

fn values(report: &Report, label: &str) -> Vec<String> {
    let all = report.tables.iter().flat_map(|table| &table.rows).filter_map(|row| row.labels.get(label).cloned());
    let mut values: Vec<_> = all.collect();
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn local_measures_every_device_in_both_directions_and_families() -> Result<()> {
    let _alone = alone();
    let words =
        "local --flows 1,100 --rounds 1 --window-ms 50 --sizes 64,imix --directions one,both --families 4,6 --plot";
    let (report, out) = report(&words.split(' ').collect::<Vec<_>>())?;
    ensure!(values(&report, "device").len() == 5, "{:?}", values(&report, "device"));
    ensure!(values(&report, "flows") == ["1", "100"], "{:?}", values(&report, "flows"));
    ensure!(values(&report, "family").len() == 2 && values(&report, "size").len() == 2);
    ensure!(report.tables[0].rows.iter().all(|row| row.rounds.iter().all(|pps| *pps > 0.0)), "{report:?}");
    for measure in ["sweeper", "controller, resident", "of it its own", "an IPv4 connection", "an IPv6 connection"] {
        let rows = report.tables[1].rows.iter().filter(|row| row.label("measure") == measure);
        let figures: Vec<_> = rows.filter_map(|row| row.median()).collect();
        ensure!(figures.len() == 4 && figures.iter().all(|figure| *figure > 0.0), "{measure}: {figures:?}");
    }
    let charts = std::fs::read_dir(out.path())?.filter_map(|file| file.ok()?.file_name().into_string().ok());
    ensure!(charts.filter(|name| name.ends_with(".svg")).count() > 0, "no chart was drawn");

    // A run differs from itself by nothing.
    let path = out.path().join("report.json").display().to_string();
    let compared = bench(&["compare", &path, &path], out.path())?;
    ensure!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    Ok(())
}

#[test]
fn latency_has_all_percentiles_in_order() -> Result<()> {
    let _alone = alone();
    let words = "latency --loads 0,50 --flows 100 --rounds 1 --window-ms 50 --full-pps 50000";
    let (report, _out) = report(&words.split(' ').collect::<Vec<_>>())?;
    for load in values(&report, "load") {
        let of = |percentile: &str| {
            let rows = report.tables[0].rows.iter();
            let mut rows = rows.filter(|row| row.label("load") == load && row.label("device") == "forwarder");
            rows.find(|row| row.label("percentile") == percentile).and_then(|row| row.median())
        };
        let all: Option<Vec<_>> = ["p50", "p90", "p99", "p99.9", "max"].into_iter().map(of).collect();
        let all = all.with_context(|| format!("a percentile is missing at load {load}"))?;
        ensure!(all.is_sorted() && all[0] > 0.0, "{all:?}");
    }
    Ok(())
}

#[test]
fn cps_counts_flows_connections_and_what_a_full_table_keeps() -> Result<()> {
    let _alone = alone();
    let words = "cps --flows 20000 --capacity 1024 --tcp-s 1 --rounds 1";
    let (report, _out) = report(&words.split(' ').collect::<Vec<_>>())?;
    let of = |measure: &str| {
        let mut rows = report.tables[0].rows.iter().filter(|row| row.label("device") == "forwarder");
        rows.find(|row| row.label("measure") == measure).and_then(|row| row.median())
    };
    ensure!(of("new flows").is_some_and(|rate| rate > 0.0) && of("TCP connections").is_some_and(|rate| rate > 0.0));
    ensure!(of("alive then") == Some(1024.0) && of("refused at a full table") == Some(1024.0), "{report:?}");
    Ok(())
}

/// In a chain of nftables they take half a millisecond for each new flow, so few have to do.
#[test]
fn local_measures_with_ten_thousand_rules() -> Result<()> {
    let _alone = alone();
    let words = "local --devices forwarder-rules,nft-chain,nft-set --flows 10 --rounds 1 --window-ms 200";
    let (report, _out) = report(&words.split(' ').collect::<Vec<_>>())?;
    ensure!(values(&report, "device").len() == 3, "{report:?}");
    ensure!(report.tables[0].rows.iter().all(|row| row.median().is_some_and(|rate| rate > 0.0)), "{report:?}");
    Ok(())
}

#[test]
fn flow_logs_have_every_connection_once() -> Result<()> {
    let _alone = alone();
    let words = "flow-logs --connections 5000 --flows 100 --rounds 1 --rate-rounds 1 --window-ms 50";
    let (report, _out) = report(&words.split(' ').collect::<Vec<_>>())?;
    let of = |measure: &str, device: &str| {
        let mut rows = report.tables[0].rows.iter().filter(|row| row.label("device") == device);
        rows.find(|row| row.label("measure") == measure).and_then(|row| row.median())
    };
    // Fewer, more, or others would have ended the run.
    ensure!(of("records", "with flow logs") == Some(20_000.0), "{report:?}");
    for measure in ["records per second", "records per second of CPU", "CPU", "share of a core", "peak memory"] {
        ensure!(of(measure, "with flow logs").is_some_and(|figure| figure > 0.0), "no {measure} in {report:?}");
    }
    ensure!(of("100 flows", "with ÷ without").is_some_and(|ratio| ratio > 0.0), "{report:?}");
    Ok(())
}

#[test]
fn prog_measures_every_path() -> Result<()> {
    let _alone = alone();
    let out = tempfile::tempdir()?;
    let ran = bench(&["prog", "--flows", "256", "--rounds", "1"], out.path())?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let report = Report::read(&out.path().join("report.json"))?;
    ensure!(values(&report, "path").len() == 27, "{:?}", values(&report, "path"));
    Ok(())
}

/// Ctrl-C as a terminal sends it, to the supervisor, the show and its forwarders alike; in mounts where there is no BPF file
/// system, so that one has to be mounted.
#[test]
fn interrupted_runs_leave_nothing() -> Result<()> {
    let _alone = alone();
    let runs = [
        "prog --flows 256 --rounds 1000",
        "local --flows 100 --rounds 1000 --window-ms 50 --devices forwarder,nft,forwarder-rules",
    ];
    for run in runs {
        let inside = || interrupt(&run.split(' ').collect::<Vec<_>>());
        let ended = std::thread::scope(|scope| scope.spawn(inside).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context(run)?;
    }
    Ok(())
}

fn interrupt(words: &[&str]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("mount namespaces need root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let usual = Path::new(Bpffs::USUAL);
    while Bpffs::left_behind(usual)?.is_some() {
        umount2(usual, MntFlags::MNT_DETACH)?;
    }
    let out = tempfile::tempdir()?;
    let said = out.path().join("said");
    let mut command = Command::new(env!("CARGO_BIN_EXE_forwarder-bench"));
    command.args(words).arg("--out").arg(out.path()).env("FORWARDER_BIN", forwarder()?).process_group(0);
    let mut child = command.stderr(File::create(&said)?).spawn().context("cannot start forwarder-bench")?;
    let id = child.id();
    let measures = wait_until("it to measure", PATIENCE, || Ok(read_to_string(&said)?.contains("round 2 of")));
    let was_mounted = Bpffs::left_behind(usual)?.is_some();
    let shows = read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    killpg(Pid::from_raw(id.cast_signed()), Signal::SIGINT)?;
    let status = child.wait()?;
    let said = read_to_string(&said)?;
    measures.with_context(|| said.clone())?;
    ensure!(was_mounted && status.code() == Some(130), "{was_mounted}, {status}: {said}");
    let pins = || usual.read_dir().into_iter().flatten().flatten().map(|pin| pin.path()).collect::<Vec<_>>();
    ensure!(Bpffs::left_behind(usual)?.is_none(), "a BPF file system is left, with {:?}: {said}", pins());
    let prefix = format!("fw{}-", shows.trim());
    for directory in ["/run/netns", "/run"] {
        for entry in Path::new(directory).read_dir()? {
            let name = entry?.file_name();
            ensure!(!name.to_string_lossy().starts_with(&prefix), "{name:?} is left in {directory}: {said}");
        }
    }
    for process in Path::new("/proc").read_dir()? {
        let stat = read_to_string(process?.path().join("stat")).unwrap_or_default();
        // pid (name, which may hold anything) state parent group …; zombies are init's.
        let words: Vec<_> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().take(3).collect();
        ensure!(words.first() == Some(&"Z") || words.get(2) != Some(&id.to_string().as_str()), "it is left: {stat}");
    }
    Ok(())
}

#[test]
fn two_hosts_find_their_highest_rates_and_round_trips() -> Result<()> {
    let _alone = alone();
    let (report, _out) = report(&["two-host", "local", "--flows", "100", "--trial-ms", "100"])?;
    for figure in ["MRR", "NDR", "PDR", "p50", "p99", "max"] {
        ensure!(values(&report, "figure").contains(&figure.to_owned()), "no {figure}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() -> Result<()> {
    let out = tempfile::tempdir()?;
    for words in [&["compare", "/nonexistent/a.json", "/nonexistent/b.json"][..], &["local", "--flows", "many"]] {
        let ran = bench(words, out.path())?;
        let text = String::from_utf8_lossy(&ran.stderr);
        ensure!(!ran.status.success() && !text.contains("panicked"), "{words:?}: {text}");
    }
    Ok(())
}
