//! The `forwarder` binary: arguments, the command, the exit code. 0: fine, 1: it is not so, 2: used wrongly (clap's).

use anyhow::{Context, Result};
use clap::Parser;
use forwarder::cli::{Cli, Command};
use forwarder::{commands, logging, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(perform(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`forwarder flows list | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forwarder: {}", forwarder::error::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn perform(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Run(arguments) => {
            logging::start(arguments.json);
            run::run(&cli.instance, arguments.config.as_deref(), run::terminated()?).await
        }
        Command::Check(arguments) => commands::check(arguments).await,
        Command::Status(output) => commands::status(&cli.instance, *output).await,
        Command::Rules(output) => commands::rules(&cli.instance, *output).await,
        Command::Sets(arguments) => commands::sets(&cli.instance, arguments).await,
        Command::Explain(arguments) => commands::explain(&cli.instance, arguments).await,
        Command::Reload(output) => commands::reload(&cli.instance, *output).await,
        Command::FlowLogs(arguments) => commands::flow_logs(&cli.instance, arguments).await,
        Command::Top(arguments) => commands::top(&cli.instance, arguments).await,
        Command::Flows(arguments) => commands::flows(&cli.instance, arguments).await,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        kind.or(json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}
