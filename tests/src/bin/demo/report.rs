//! What is printed, and what the verdict counts.

use anyhow::Result;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";

/// Checks made so far.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    /// A heading.
    pub fn title(&self, title: &str) {
        println!("\n{}", paint(BOLD, &format!("== {title}")));
    }

    /// Text as a program printed it, indented.
    pub fn text(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("   {line}");
        }
    }

    /// One thing that has to be so: who did it, and what came of it.
    pub fn check(&mut self, what: &str, outcome: Result<String>) {
        match outcome {
            Ok(said) => {
                self.passed += 1;
                println!("   {}    {what:<44} {said}", paint(GREEN, "ok"));
            }
            Err(error) => {
                println!("   {}  {what:<44} {error:#}", paint(RED, "FAIL"));
                self.failed.push(what.to_owned());
            }
        }
    }

    /// The last word, and the exit code that says the same.
    pub fn verdict(self, took: Duration) -> ExitCode {
        self.title("Verdict");
        let all = self.passed + self.failed.len();
        println!("   {} of {all} checks passed in {:.0} s", self.passed, took.as_secs_f64());
        if self.failed.is_empty() {
            println!("   forwarder forwards: {}", paint(GREEN, "yes"));
            return ExitCode::SUCCESS;
        }
        println!("   forwarder forwards: {}: {}", paint(RED, "not as it should"), self.failed.join("; "));
        ExitCode::FAILURE
    }
}

/// Coloured when a person looks at it.
fn paint(colour: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}
