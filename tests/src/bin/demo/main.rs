//! A little VPC made of network namespaces, the real binary with a real config in its middle, and real clients that talk
//! to real servers through it. Prints what a person wants to see, ends with a verdict, leaves nothing behind.
//!
//! `cargo xtask demo` builds all and starts this. Alone: `demo [--one-armed] [--hold]`, as root.

mod acts;
mod report;

use anyhow::{Result, bail};
use forwarder_kit::topology::{Options, Shape};
use forwarder_kit::{Appliance, Topology, supervise};
use forwarder_tests::Lab;
use report::Report;
use std::process::ExitCode;
use std::time::Instant;

/// Clients that share the public address.
const CLIENTS: usize = 3;

/// The rest of the config after the interfaces: most of it could be left out.
const CONFIG: &str = "\
[nat]
ports = \"1024-64511\"
[[nat.exempt]]                   # networks of our own keep their addresses
to = [\"10.0.0.0/8\"]

[timeouts]
tcp_established = \"350s\"
udp = \"30s\"

[flows]
max = \"64k\"
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let outcome = if words.next_if_eq(supervise::INNER).is_some() {
        supervise::unblock().and_then(|()| perform(words))
    } else {
        supervise::run(|| {})
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(words: impl Iterator<Item = String>) -> Result<ExitCode> {
    let begun = Instant::now();
    let report = show(&Arguments::parse(words)?)?;
    Ok(report.verdict(begun.elapsed()))
}

#[derive(Debug)]
struct Arguments {
    shape: Shape,
    hold: bool,
}

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self { shape: Shape::TwoArmed, hold: false };
        for word in words {
            match word.as_str() {
                "--one-armed" => arguments.shape = Shape::OneArmed,
                "--hold" => arguments.hold = true,
                _ => bail!("`{word}` is not known: --one-armed and --hold are"),
            }
        }
        Ok(arguments)
    }
}

/// The acts in order. What goes wrong in one is told in the verdict and does not keep the others from being shown.
fn show(arguments: &Arguments) -> Result<Report> {
    let mut report = Report::default();
    report.title("A little VPC, each box a network namespace");
    let net = Topology::new(Options { shape: arguments.shape, clients: CLIENTS, ..Options::default() })?;
    report.text(&acts::drawing(arguments.shape));
    let config = format!("{}{CONFIG}", net.config());
    report.title("The config");
    report.text(&config);
    report.title("forwarder run");
    let begun = Instant::now();
    let mut lab = Lab { appliance: Appliance::start_in(&net.appliance, &config)?, net };
    report.text(&format!("ready after {:.2} s; it said:\n{}", begun.elapsed().as_secs_f64(), lab.appliance.log()));

    acts::reach(&mut report, &lab)?;
    acts::throughput(&mut report, &lab)?;
    acts::misbehave(&mut report, &lab)?;
    acts::flows(&mut report, &lab)?;
    acts::status(&mut report, &lab)?;
    acts::crash(&mut report, &mut lab)?;
    if arguments.hold {
        acts::hold(&lab)?;
    }
    acts::leave(&mut report, &mut lab)?;
    Ok(report)
}
