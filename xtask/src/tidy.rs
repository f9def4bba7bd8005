//! `cargo xtask tidy`: the fence around the house style, for what neither compiler nor clippy checks.
//!
//! | rule | where it does not hold |
//! | --- | --- |
//! | no `aya` (nor `aya_obj`, `aya_log`) | `forwarder/src/datapath`, `bench/src/load` |
//! | no `aya_ebpf` (nor `aya_log_ebpf`) | `forwarder-ebpf/src/bpf` |
//! | no `unsafe` | all of them, `forwarder-ebpf/src/abi` |
//! | a file opens with `//!`, attributes may precede it | |
//! | a file has at most 400 lines before its unit tests, a function 50 | unit tests, `tests/` but for its libraries |
//! | no to-do notes, no `todo!`, no `unimplemented!`, no test ignored without a reason | |
//!
//! Text in comments and strings is not code, and the other way round. Everything found is printed, then it fails.

mod source;

use anyhow::{Context, Result, bail};
use source::Source;
use std::path::{Path, PathBuf};
use xtask::workspace;

const LINES_IN_FILE: usize = 400;
const LINES_IN_FUNCTION: usize = 50;

/// Words that may only be used below some directories.
const FENCES: [(&[&str], &[&str]); 3] = [
    (&["aya", "aya_obj", "aya_log"], &["forwarder/src/datapath", "bench/src/load"]),
    (&["aya_ebpf", "aya_log_ebpf"], &["forwarder-ebpf/src/bpf"]),
    (&["unsafe"], &["forwarder/src/datapath", "forwarder-ebpf/src/bpf", "forwarder-ebpf/src/abi", "bench/src/load"]),
];

/// A place and what is wrong there.
#[derive(Debug, PartialEq)]
struct Problem {
    line: usize,
    text: String,
}

/// Checks every Rust file of the source tree.
///
/// # Errors
/// When a file breaks a rule; each place was printed.
pub fn run() -> Result<()> {
    let root = workspace();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let mut found = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(&root).unwrap_or(file);
        for problem in check(path, &text) {
            println!("{}:{}: {}", path.display(), problem.line, problem.text);
            found += 1;
        }
    }
    if found > 0 {
        bail!("tidy found {found} problems in {} files", files.len());
    }
    println!("tidy: {} files are in order", files.len());
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in directory.read_dir().with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, files)?;
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Everything that is wrong with a file, by line.
fn check(path: &Path, text: &str) -> Vec<Problem> {
    let source = Source::new(text);
    let mut problems = fences(path, &source);
    problems.extend(opening(text));
    problems.extend(leftovers(&source));
    let is_library = path.starts_with("tests/kit") || path.starts_with("tests/golden");
    if !path.starts_with("tests") || is_library {
        problems.extend(sizes(&source));
    }
    problems.sort_by_key(|problem| problem.line);
    problems
}

fn fences(path: &Path, source: &Source) -> Vec<Problem> {
    let fenced = |word: &str| {
        let (_, allowed) = FENCES.iter().find(|(words, _)| words.contains(&word))?;
        (!allowed.iter().any(|directory| path.starts_with(directory))).then(|| allowed.join(", "))
    };
    source
        .words()
        .filter_map(|(line, word)| Some(Problem { line, text: format!("`{word}` outside {}", fenced(word)?) }))
        .collect()
}

/// Complains unless the file opens with `//!`, perhaps after inner attributes.
fn opening(text: &str) -> Option<Problem> {
    let mut in_attribute = false;
    for line in text.lines().map(str::trim) {
        if in_attribute || line.starts_with("#![") {
            in_attribute = !line.ends_with(']');
        } else if line.starts_with("//!") {
            return None;
        } else if !line.is_empty() {
            break;
        }
    }
    Some(Problem { line: 1, text: "the file does not open with `//!`: say what it owns and what it does not".into() })
}

fn leftovers(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, (code, comment)) in source.code.lines().zip(source.comments.lines()).enumerate() {
        let mut complain = |text: String| problems.push(Problem { line: index + 1, text });
        for note in source::words(comment).filter(|word| ["TODO", "FIXME", "XXX"].contains(word)) {
            complain(format!("{note} in a comment: do it, or open an issue and say what does not work"));
        }
        let dense: String = code.split_whitespace().collect();
        for macro_call in ["todo!", "unimplemented!"] {
            if dense.contains(macro_call) {
                complain(format!("`{macro_call}` in the code"));
            }
        }
        if dense.contains("#[ignore]") {
            complain("a test is ignored without a reason: `#[ignore = \"why\"]`".into());
        }
    }
    problems
}

fn sizes(source: &Source) -> Vec<Problem> {
    let lines = source.lines_before_tests();
    let mut problems = Vec::new();
    if lines > LINES_IN_FILE {
        problems.push(Problem { line: 1, text: format!("{lines} lines before the tests, at most {LINES_IN_FILE}") });
    }
    for function in functions(&source.code) {
        let length = function.end - function.start + 1;
        if length > LINES_IN_FUNCTION && function.start <= lines {
            let text = format!("function `{}` has {length} lines, at most {LINES_IN_FUNCTION}", function.name);
            problems.push(Problem { line: function.start, text });
        }
    }
    problems
}

/// A function with a body; lines count from 1.
struct Function {
    name: String,
    start: usize,
    end: usize,
}

fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let Some(name) = source::words(&code[at + 3..]).next().filter(|_| starts_word) else { continue };
        let Some(length) = body_end(&code[at..]) else { continue };
        let line = |upto: usize| code[..upto].matches('\n').count() + 1;
        found.push(Function { name: name.to_string(), start: line(at), end: line(at + length) });
    }
    found
}

/// Where the body that follows a `fn` ends; none for a declaration or a function pointer's type.
fn body_end(code: &str) -> Option<usize> {
    let (mut braces, mut others) = (0_i32, 0_i32);
    for (at, c) in code.char_indices() {
        match c {
            '{' => braces += 1,
            '}' if braces <= 1 => return (braces == 1).then_some(at),
            '}' => braces -= 1,
            '(' | '[' => others += 1,
            ')' | ']' if others == 0 => return None,
            ')' | ']' => others -= 1,
            ';' | ',' | '=' if braces == 0 && others == 0 && !code[..at].contains("where") => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
