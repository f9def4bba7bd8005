//! Another format and interval for destinations of AWS, while the service is there and while it is not: every object says
//! itself what its lines are, and old and new records together are what was sent.

use crate::{PACKET, QUESTIONS, ask_and_answer, lab, moto, sums};
use anyhow::{Context, Result, bail, ensure};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_tests::records::{Record, sum};
use forwarder_tests::{Lab, SMALL_TABLE};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Fields of the two formats: as many, so that only what they say tells them apart.
const A: &str = "srcport dstport packets bytes flow-direction log-status";
const B: &str = "log-status flow-direction bytes packets dstport srcport";

/// What `parts` can read.
const KINDS: [&str; 3] = ["text", "columns", "events"];

/// Objects of text and of columns, events, and a file. Text is collected for longer than a test takes.
fn config(directory: &Path, format: &str, interval: u64) -> String {
    let format = format.split(' ').map(|name| format!("${{{name}}}")).collect::<Vec<_>>().join(" ");
    let cloud = format!(
        "endpoint = \"http://127.0.0.1:5000\"\nregion = \"eu-central-1\"\nspool = \"{}\"\n",
        directory.join("spool").display()
    );
    format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"{interval}s\"\nformat = \"{format}\"\naccount_id = \"123456789012\"\n\
         [[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"logs\"\nprefix = \"text\"\nevery = \"60s\"\n{cloud}\
         [[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"logs\"\nprefix = \"columns\"\nevery = \"1s\"\n\
         file_format = \"parquet\"\n{cloud}\
         [[flow_logs.destination]]\nkind = \"cloudwatch-logs\"\nlog_group = \"flows\"\ncreate_log_group = true\n{cloud}\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"{}\"\n",
        directory.join("flow.log").display()
    )
}

/// The lines of each object or stream, with what they say they are; events say nothing.
fn parts(lab: &Lab, what: &str) -> Result<Vec<(Option<String>, Vec<String>)>> {
    let found = sums(lab, "read", what)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("not a text");
    let part = |part: &Value| {
        let lines = part[1].as_array().context("no lines")?;
        Ok((part[0].as_str().map(str::to_owned), lines.iter().map(text).collect::<Result<_>>()?))
    };
    found.as_array().context("no parts")?.iter().map(part).collect()
}

fn is_status(word: Option<&&str>) -> bool {
    word.is_some_and(|word| ["OK", "NODATA", "SKIPDATA"].contains(word))
}

/// A line, by the format that it is in.
fn record(line: &str) -> Result<(&'static str, Record)> {
    let words: Vec<_> = line.split(' ').collect();
    let format = match (is_status(words.first()), is_status(words.last())) {
        (false, true) => A,
        (true, false) => B,
        _ => bail!("{line} is of no format"),
    };
    ensure!(words.len() == format.split(' ').count(), "{line} has other fields than {format}");
    Ok((format, format.split(' ').zip(words).map(|(name, word)| (name.to_owned(), word.to_owned())).collect()))
}

/// That all parts have lines of one format, if they say so that one, that both are there, and that the records are those of
/// so many questions.
fn check(lab: &Lab, what: &str, questions: u64) -> Result<Vec<Record>> {
    let (mut all, mut formats) = (Vec::new(), Vec::new());
    for (said, lines) in parts(lab, what)? {
        for line in lines {
            let (format, record) = record(&line)?;
            ensure!(said.as_ref().is_none_or(|said| said == format), "{what}: {line} stands below {said:?}");
            formats.push(format);
            all.push(record);
        }
    }
    ensure!(formats.contains(&A) && formats.contains(&B), "{what}: not both formats in {} lines", all.len());
    let found = sum(&all, |record| record["flow-direction"] == "egress" && record["dstport"] == "9000");
    ensure!(found == (questions, questions * PACKET), "{what}: {found:?} instead of {questions} and their bytes");
    Ok(all)
}

fn nothing_lost(records: &[Record]) -> Result<()> {
    ensure!(records.iter().all(|record| record["log-status"] != "SKIPDATA"), "something is said to be lost");
    Ok(())
}

fn reload(lab: &Lab, config: &str) -> Result<()> {
    lab.appliance.write_config(&format!("{}{config}", lab.net.config()))?;
    let said = lab.appliance.ask(&["reload"])?;
    ensure!(said.contains("reloaded"), "{said}");
    Ok(())
}

/// Whether the records of one round of questions are in the file, and the others have taken as many as it has.
fn has_all(lab: &Lab, directory: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(directory.join("flow.log"))?;
    let records = text.lines().map(|line| Ok(record(line)?.1)).collect::<Result<Vec<_>>>()?;
    let found = sum(&records, |record| record["flow-direction"] == "egress" && record["dstport"] == "9000");
    let status = lab.appliance.status()?.json;
    let mut taken = status["flow_logs"].as_array().context("no /flow_logs")?.iter().map(|of| &of["records"]);
    let first = taken.next();
    Ok(found.0 == QUESTIONS && taken.all(|other| Some(other) == first))
}

/// How another config comes to be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Reload,
    Restart,
    Kill,
}

impl Change {
    fn make(self, lab: &mut Lab, directory: &Path) -> Result<()> {
        let config = config(directory, B, 1);
        match self {
            Self::Reload => return reload(lab, &config),
            Self::Restart => lab.appliance.stop()?,
            Self::Kill => {
                // What is not in a record yet would be in one of the next controller's, in its format.
                wait_until("all records to be made and taken", PATIENCE, || has_all(lab, directory))?;
                lab.appliance.kill9()?;
            }
        }
        lab.appliance.write_config(&format!("{}{config}", lab.net.config()))?;
        lab.appliance.start_again()
    }
}

/// Records of two formats wait for a service that is not there.
fn waits_over(change: Change) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut lab = lab(&config(directory.path(), A, 1))?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    ask_and_answer(&lab)?;
    change.make(&mut lab, directory.path())?;
    ask_and_answer(&lab)?;
    let mut moto = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    lab.appliance.stop()?;
    for what in KINDS {
        let records =
            check(&lab, what, 2 * QUESTIONS).with_context(|| format!("{change:?}: {}", lab.appliance.log()))?;
        // One that is killed between two steps declares a loss that may be none.
        if change != Change::Kill {
            nothing_lost(&records)?;
        }
    }
    ensure!(moto.is_running(), "moto_server has ended");
    Ok(())
}

#[test]
fn what_waits_over_a_reload_is_sent_as_what_it_is() -> Result<()> {
    waits_over(Change::Reload)
}

#[test]
fn what_waits_over_a_restart_is_sent_as_what_it_is() -> Result<()> {
    waits_over(Change::Restart)
}

#[test]
fn what_waits_over_a_kill_is_sent_as_what_it_is() -> Result<()> {
    waits_over(Change::Kill)
}

/// Another interval and format, and back, while all is well.
#[test]
fn a_reload_under_traffic_loses_and_doubles_nothing() -> Result<()> {
    const ROUNDS: u64 = 3;
    let directory = tempfile::tempdir()?;
    let before = config(directory.path(), A, 1);
    let mut lab = lab(&before)?;
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    let mut moto = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    let (asked, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let ask = || -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            ask_and_answer(&lab)?;
            asked.fetch_add(QUESTIONS, Ordering::Relaxed);
        }
        Ok(())
    };
    let change = || -> Result<()> {
        for round in 1..=ROUNDS {
            std::thread::sleep(Duration::from_millis(700));
            let at = server.requests();
            let after = config(directory.path(), B, 3);
            reload(&lab, if round % 2 == 1 { &after } else { &before })?;
            wait_until("traffic after the reload", PATIENCE, || Ok(server.requests() > at))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let asking = scope.spawn(ask);
        let changed = change();
        done.store(true, Ordering::Relaxed);
        changed?;
        asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    lab.appliance.stop()?;
    for what in KINDS {
        let records = check(&lab, what, asked.load(Ordering::Relaxed)).with_context(|| lab.appliance.log())?;
        nothing_lost(&records)?;
    }
    ensure!(moto.is_running(), "moto_server has ended");
    Ok(())
}
