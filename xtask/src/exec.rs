//! Commands: run them, and when one fails say which. Owns no policy about what to run.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The command as a person would type it, with the variables that were set for it.
#[must_use]
pub fn display(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        // Flags apart by a control character cannot be typed; the variable with spaces means the same.
        let name = name.to_string_lossy().replace("CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS");
        Some(format!("{name}={}", quote(value?)))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quote);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    let text = word.to_string_lossy().replace('\u{1f}', " ");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{text}'") }
}

/// Runs a command with its output going where ours goes.
///
/// # Errors
/// When it cannot be started or ends with anything but success; the text names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start: {}", display(command)))?;
    if !status.success() {
        bail!("command failed ({status}): {}", display(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// As [`run`]; the text then also carries the last line of standard error.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start: {}", display(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.trim_end().lines().last().unwrap_or_default().to_string();
        bail!("command failed ({}): {}: {last}", output.status, display(command));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every file called `name` in the directories of `PATH`, and in the system's sbin directories, which the `PATH` of
/// an ordinary user lacks.
#[must_use]
pub fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .filter(|file| is_program(file))
        .collect()
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named() {
        let error = run(Command::new("sh").args(["-c", "exit 3"]).env("A", "b c")).expect_err("exit 3 is a failure");
        assert_eq!(error.to_string(), "command failed (exit status: 3): A='b c' sh -c 'exit 3'");
    }

    #[test]
    fn the_last_line_of_standard_error_is_kept() {
        let error =
            read(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; false"])).expect_err("false fails");
        assert!(error.to_string().ends_with(": two"), "{error}");
    }

    #[test]
    fn only_programs_are_found() {
        assert!(!on_path("sh").is_empty());
        assert!(on_path("no-such-program").is_empty());
    }
}
