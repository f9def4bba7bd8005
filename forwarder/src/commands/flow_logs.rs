//! `forwarder flow-logs`.

use super::socket;
use crate::api;
use crate::cli::{FlowLogs, Tail};
use crate::client::{ClientError, ask_lines};
use crate::record::{Filter, Format};
use crate::run;
use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Write, stdout};
use std::os::fd::AsFd;

/// `forwarder flow-logs`
///
/// # Errors
/// When no forwarder answers, or the filter or the format is none.
pub async fn flow_logs(instance: &str, FlowLogs::Tail(arguments): &FlowLogs) -> Result<()> {
    end_with_a_signal()?;
    end_with_the_reader();
    tail(instance, arguments).await
}

/// On a thread of its own: the other one may be writing to a reader that does not read.
fn end_with_a_signal() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let signal = {
        let _inside = runtime.enter();
        run::terminated()?
    };
    std::thread::spawn(move || {
        runtime.block_on(signal);
        std::process::exit(0);
    });
    Ok(())
}

/// Whoever read our output may go while there is nothing to write.
fn end_with_the_reader() {
    std::thread::spawn(|| {
        let out = stdout();
        // Nothing is asked for, so it returns with an error or the other end's hanging up only.
        let mut ends = [PollFd::new(out.as_fd(), PollFlags::empty())];
        if poll(&mut ends, PollTimeout::NONE).is_ok() {
            std::process::exit(0);
        }
    });
}

/// Every line at once: whoever follows wants to see it now.
async fn tail(instance: &str, Tail { filter, format, output }: &Tail) -> Result<()> {
    let filter = filter.join(" ");
    // Said here as well, where it costs nobody else anything.
    if !filter.is_empty() {
        filter.parse::<Filter>().map_err(|error| anyhow!("the filter {error}"))?;
    }
    Format::parse(format).map_err(|error| anyhow!("the format {error}"))?;
    let query = api::Tail { filter, format: format.clone(), json: output.json };
    let query = serde_urlencoded::to_string(query).context("cannot write the filter as a query")?;
    let mut out = stdout().lock();
    let (socket, path) = (socket(instance), format!("/flow-logs?{query}"));
    let followed = ask_lines(&socket, &path, |line| {
        if let Some(number) = line.strip_prefix(api::LEFT_OUT.as_bytes()) {
            let number = String::from_utf8_lossy(number);
            eprintln!("forwarder: {number} records were left out: whoever reads them is too slow");
            return Ok(());
        }
        out.write_all(line)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    });
    match followed.await {
        // It has ended, in peace or not; what it had recorded until then has been shown.
        Ok(()) => {}
        Err(ClientError::Http(_)) => {}
        Err(error) => return Err(error.into()),
    }
    eprintln!("forwarder: the forwarder has ended");
    Ok(())
}
