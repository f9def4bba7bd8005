//! `[[firewall.set]]`: addresses of both families under a name, inline or from a file.

use super::words::parse_range;
use crate::config::document::Section;
use crate::config::error::Result;
use crate::firewall::ranges::{AddressRange, Addresses};
use std::path::{Path, PathBuf};

pub(super) const KEYS: &[&str] = &["name", "prefixes", "file"];
/// Longest name.
const NAME_BYTES: usize = 63;

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name; rules write `@name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// The file that it was read from, if there is one.
    pub file: Option<PathBuf>,
}

/// Why a text is not a list of prefixes.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    /// A line of it is wrong.
    #[error("line {line}: `{text}` {problem}")]
    Line {
        /// Counts from 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads one more set; its name has to differ from those `before` it.
pub(super) fn read(section: &mut Section<'_, '_>, before: &[Set]) -> Result<Set> {
    let field = section.require("name", "name = \"office\"; rules then write \"@office\"")?;
    let name = field.text("must be a text, such as \"office\"")?.to_owned();
    if !is_name(&name) {
        return Err(field.refuse(format!("must have 1 to {NAME_BYTES} letters, digits, `-`, `_` or `.`")));
    }
    if before.iter().any(|other| other.name == name) {
        return Err(field.refuse("is the name of another set; give each its own"));
    }
    let (prefixes, file) = (section.take("prefixes"), section.take("file"));
    let (addresses, file) = match (prefixes, file) {
        (Some(prefixes), None) => {
            let items = prefixes.items("must be a list with at least one prefix, such as [\"203.0.113.0/24\"]")?;
            let ranges: Vec<AddressRange> = items.iter().map(|item| item.parse(parse_range)).collect::<Result<_>>()?;
            (Addresses::of(&ranges), None)
        }
        (None, Some(file)) => {
            let path = PathBuf::from(file.text("must be a path")?);
            (read_file(&path).map_err(|problem| file.refuse(problem))?, Some(path))
        }
        (None, None) => {
            return Err(section
                .require("prefixes", "prefixes = [\"203.0.113.0/24\"] or file = \"/path\"")
                .err()
                .expect("the key has just been found missing"));
        }
        (Some(_), Some(file)) => return Err(file.refuse("stands beside prefixes; write one of them")),
    };
    Ok(Set { name, addresses, file })
}

/// Whether it can be a set's name.
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= NAME_BYTES && name.chars().all(allowed)
}

/// Reads a file of prefixes, ranges and addresses, one a line; `#` begins a comment.
///
/// # Errors
/// When it cannot be read, or a line is wrong.
pub fn read_file(path: &Path) -> std::result::Result<Addresses, SetError> {
    parse(&std::fs::read_to_string(path).map_err(SetError::Read)?)
}

/// Reads prefixes, ranges and addresses, one a line; `#` begins a comment.
///
/// # Errors
/// When a line is wrong.
pub fn parse(text: &str) -> std::result::Result<Addresses, SetError> {
    let mut ranges = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            let problem = |problem: crate::config::units::UnitError| problem.to_string();
            let range = parse_range(text).map_err(problem);
            ranges.push(range.map_err(|problem| SetError::Line { line, text: text.to_owned(), problem })?);
        }
    }
    Ok(Addresses::of(&ranges))
}
