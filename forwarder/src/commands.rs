//! The commands: `check`, `status` and `flows` here, the firewall's in `firewall`. What they print is for people, or JSON.

mod firewall;
mod flow_logs;
mod top;

pub use firewall::{explain, reload, rules, sets};
pub use flow_logs::flow_logs;
pub use top::top;

use crate::api::{Counted, Removed};
use crate::cli::{Check, Flows, Output, Select};
use crate::client::{ClientError, ask, ask_lines};
use crate::firewall::compile::compile;
use crate::firewall::lockout;
use crate::flows::filter::Filter;
use crate::flows::list::Connection;
use crate::host::Netlink;
use crate::state::StateDirectory;
use crate::status::{Status, text};
use crate::{config, plan};
use anyhow::{Context, Result};
use hyper::Method;
use std::io::{BufWriter, Write, stdout};
use std::path::Path;

/// `forwarder check`: what the configuration means on this host.
///
/// # Errors
/// When the configuration is wrong, or does not fit the host.
pub async fn check(arguments: &Check) -> Result<()> {
    let config = config::read(arguments.config.as_deref())?;
    let netlink = Netlink::open().await?;
    let mut plan = plan::plan(&config, &netlink.facts().await?)?;
    // Whether the rules fit shows only when they are compiled.
    compile(&plan.firewall_rules.matchers, plan.firewall.max_memory.into())?;
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    plan.notices.extend(lockout::warning(&plan.firewall_rules, &connection));
    let mut out = stdout().lock();
    if arguments.output.json {
        serde_json::to_writer_pretty(&mut out, &plan.summary()).context("cannot write the plan")?;
        writeln!(out).context("cannot write the plan")
    } else {
        write!(out, "{}", plan.describe()).context("cannot write the plan")
    }
}

/// `forwarder status`
///
/// # Errors
/// When no forwarder answers.
pub async fn status(instance: &str, output: Output) -> Result<()> {
    let status: Status = ask(&socket(instance), Method::GET, "/status").await?;
    let mut out = stdout().lock();
    if output.json {
        serde_json::to_writer_pretty(&mut out, &status).context("cannot write the status")?;
        writeln!(out).context("cannot write the status")
    } else {
        write!(out, "{}", text::page(&status)).context("cannot write the status")
    }
}

/// `forwarder flows`
///
/// # Errors
/// When no forwarder answers, or it cannot read its table.
pub async fn flows(instance: &str, arguments: &Flows) -> Result<()> {
    let socket = socket(instance);
    match arguments {
        Flows::List(Select { filter, output }) => list(&socket, filter, *output).await,
        Flows::Count(Select { filter, output }) => {
            let counted: Counted = ask(&socket, Method::GET, &path("/flows/count", filter)?).await?;
            print_number(&counted, counted.count, *output)
        }
        Flows::Flush(Select { filter, output }) => {
            let removed: Removed = ask(&socket, Method::DELETE, &path("/flows", filter)?).await?;
            print_number(&removed, removed.removed, *output)
        }
    }
}

async fn list(socket: &Path, filter: &Filter, output: Output) -> Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    let mut lines = 0;
    let path = path("/flows", filter)?;
    if output.json {
        write!(out, "[")?;
        let show = |line: &[u8]| -> Result<(), ClientError> {
            out.write_all(if lines == 0 { b"\n" } else { b",\n" })?;
            lines += 1;
            Ok(out.write_all(line)?)
        };
        ask_lines(socket, &path, show).await?;
        writeln!(out, "\n]")?;
    } else {
        let show = |line: &[u8]| -> Result<(), ClientError> {
            if lines == 0 {
                writeln!(out, "{}", heading())?;
            }
            lines += 1;
            Ok(writeln!(out, "{}", row(&serde_json::from_slice(line)?))?)
        };
        ask_lines(socket, &path, show).await?;
    }
    out.flush().context("cannot write the flows")
}

fn heading() -> String {
    format!(
        "{:<7} {:<24} {:<24} {:<24} {:<12} {:>10} {:>12} {:>10} {:>12} {:>7} {:>7}",
        "", "source", "destination", "as", "state", "sent", "bytes", "received", "bytes", "age s", "idle s"
    )
}

fn row(connection: &Connection) -> String {
    let Connection { protocol, original, translated, state, originator, responder, age_seconds, idle_seconds, .. } =
        connection;
    let translated = if translated == original { "-" } else { &translated.source };
    format!(
        "{protocol:<7} {:<24} {:<24} {translated:<24} {state:<12} {:>10} {:>12} {:>10} {:>12} {age_seconds:>7.0} \
         {idle_seconds:>7.0}",
        original.source, original.destination, originator.packets, originator.bytes, responder.packets, responder.bytes
    )
}

fn print_number(json: &impl serde::Serialize, number: u64, output: Output) -> Result<()> {
    let text = if output.json { serde_json::to_string(json).expect("plain data is JSON") } else { number.to_string() };
    writeln!(stdout(), "{text}").context("cannot write the number")
}

fn path(path: &str, filter: &Filter) -> Result<String> {
    let query = serde_urlencoded::to_string(filter).context("cannot write the filter as a query")?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

fn socket(instance: &str) -> std::path::PathBuf {
    StateDirectory::path_of(instance).join(StateDirectory::SOCKET)
}
