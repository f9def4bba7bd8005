//! The commands about the firewall: `rules`, `sets`, `explain`, `reload`.

use super::socket;
use crate::api::{Report, SetReport};
use crate::cli::{ChangeSet, Explain, Output, Sets};
use crate::client::{ask, ask_lines, tell};
use crate::firewall::explain::{self, Explanation};
use crate::firewall::report::RuleReport;
use anyhow::{Context, Result, bail};
use hyper::Method;
use serde::Serialize;
use std::io::{BufWriter, Write, stdout};

/// `forwarder rules`
///
/// # Errors
/// When no forwarder answers.
pub async fn rules(instance: &str, output: Output) -> Result<()> {
    let rules: Vec<RuleReport> = ask(&socket(instance), Method::GET, "/rules").await?;
    if output.json {
        return print_json(&rules);
    }
    let mut out = BufWriter::new(stdout().lock());
    writeln!(out, "{:>10} {:>12} {:>10}  rule", "hits", "bytes", "last s ago")?;
    for rule in rules {
        let ago = rule.last_hit_seconds.map_or_else(|| "-".to_owned(), |ago| format!("{ago:.0}"));
        let host = if rule.host { "host: " } else { "" };
        let unmet = rule.unmet.map_or_else(String::new, |why| format!("  -- never met: {why}"));
        let (hits, bytes, name, text) = (rule.hits, rule.bytes, rule.name, rule.rule);
        writeln!(out, "{hits:>10} {bytes:>12} {ago:>10}  {host}{name}: {text}{unmet}")?;
    }
    out.flush().context("cannot write the rules")
}

/// `forwarder reload`
///
/// # Errors
/// When no forwarder answers, or the configuration cannot be applied.
pub async fn reload(instance: &str, output: Output) -> Result<()> {
    let report: Report = ask(&socket(instance), Method::POST, "/reload").await?;
    print_done(&report, output)
}

/// `forwarder sets`
///
/// # Errors
/// When no forwarder answers, there is no such set, or its change cannot be applied.
pub async fn sets(instance: &str, arguments: &Sets) -> Result<()> {
    match arguments {
        Sets::List { name: None, output } => list(instance, *output).await,
        Sets::List { name: Some(name), output } => show(instance, name, *output).await,
        Sets::Add(change) => change_set(instance, "add", change).await,
        Sets::Remove(change) => change_set(instance, "remove", change).await,
        Sets::Replace(change) => change_set(instance, "replace", change).await,
        Sets::Reset { name, output } => {
            let report: Report = ask(&socket(instance), Method::POST, &format!("/sets/{name}/reset")).await?;
            print_done(&report, *output)
        }
    }
}

async fn list(instance: &str, output: Output) -> Result<()> {
    let sets: Vec<SetReport> = ask(&socket(instance), Method::GET, "/sets").await?;
    if output.json {
        return print_json(&sets);
    }
    let mut out = stdout().lock();
    let line = |set: &SetReport| match (set.added, set.removed) {
        (0, 0) => format!("{:>10}  {}", set.ranges, set.name),
        (added, removed) => format!("{:>10}  {}  -- live: +{added} -{removed}", set.ranges, set.name),
    };
    sets.iter().try_for_each(|set| writeln!(out, "{}", line(set))).context("cannot write the sets")
}

async fn show(instance: &str, name: &str, output: Output) -> Result<()> {
    let mut ranges = Vec::new();
    let mut out = BufWriter::new(stdout().lock());
    ask_lines(&socket(instance), &format!("/sets/{name}"), |line| {
        if output.json {
            ranges.push(String::from_utf8_lossy(line).into_owned());
            return Ok(());
        }
        out.write_all(line)?;
        Ok(out.write_all(b"\n")?)
    })
    .await?;
    out.flush().context("cannot write the set")?;
    drop(out);
    if output.json { print_json(&ranges) } else { Ok(()) }
}

async fn change_set(instance: &str, verb: &str, change: &ChangeSet) -> Result<()> {
    let mut text = change.ranges.join("\n");
    if let Some(file) = &change.file {
        let lines = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        text = format!("{text}\n{lines}");
    } else if change.ranges.is_empty() {
        bail!("no addresses: write some behind the name of the set, or --file FILE");
    }
    let path = format!("/sets/{}/{verb}", change.name);
    let report: Report = tell(&socket(instance), Method::POST, &path, (text.into(), "text/plain")).await?;
    print_done(&report, change.output)
}

/// `forwarder explain`
///
/// # Errors
/// When the flow cannot be understood, or no forwarder answers.
pub async fn explain(instance: &str, arguments: &Explain) -> Result<()> {
    let question = explain::parse(&arguments.flow).map_err(anyhow::Error::msg)?;
    let body = serde_json::to_vec(&question).context("cannot write the question")?;
    let explained: Explanation =
        tell(&socket(instance), Method::POST, "/explain", (body.into(), "application/json")).await?;
    if arguments.output.json {
        return print_json(&explained);
    }
    let mut out = stdout().lock();
    explained.steps.iter().try_for_each(|step| writeln!(out, "{step}")).context("cannot write the answer")
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    serde_json::to_writer_pretty(&mut out, value).context("cannot write the answer")?;
    writeln!(out)?;
    out.flush().context("cannot write the answer")
}

fn print_done(report: &Report, output: Output) -> Result<()> {
    if output.json {
        return print_json(report);
    }
    writeln!(stdout(), "{}", report.done).context("cannot write the answer")
}
