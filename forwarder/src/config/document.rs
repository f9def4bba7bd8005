//! A TOML text, taken apart key by key, so that everything that is wrong can be said with its line, key and value.
//!
//! A section is asked for the keys it may have, no others: what is unknown is refused before anything is read, so that
//! a misspelt key is not reported as a missing one.

use super::error::{ConfigError, Place, Result};
use super::units::{self, list_text};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest value that an error quotes, in characters.
const QUOTED: usize = 60;

/// A config text and its name.
pub(super) struct Document<'i> {
    name: &'i str,
    text: &'i str,
    /// Where lines end: thousands of rules ask for theirs.
    ends: Vec<usize>,
    lines: RefCell<BTreeMap<String, usize>>,
}

impl<'i> Document<'i> {
    pub(super) fn new(name: &'i str, text: &'i str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { name, text, ends, lines: RefCell::default() }
    }

    /// Takes the whole text apart with `read`; it may have these keys.
    pub(super) fn read<T>(
        &self,
        keys: &[&'static str],
        read: impl FnOnce(&mut Section<'_, 'i>) -> Result<T>,
    ) -> Result<T> {
        let table = DeTable::parse(self.text).map_err(|error| self.syntax(&error))?.into_inner();
        Section { document: self, path: String::new(), at: 0, table }.read(keys, read)
    }

    /// The line of every key that was read; of a list of sections, the first.
    pub(super) fn into_lines(self) -> BTreeMap<String, usize> {
        self.lines.into_inner()
    }

    fn place(&self, at: usize) -> Place {
        Place { file: self.name.to_owned(), line: self.ends.partition_point(|end| *end < at) + 1 }
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let place = self.place(error.span().map_or(0, |span| span.start));
        let text = one_line(self.text.lines().nth(place.line - 1).unwrap_or_default());
        ConfigError::Syntax { place, text, problem: one_line(error.message()) }
    }
}

/// A table: `[nat]`, one of `[[nat.source]]`, or `{ … }`.
pub(super) struct Section<'d, 'i> {
    document: &'d Document<'i>,
    path: String,
    at: usize,
    table: DeTable<'i>,
}

impl<'d, 'i> Section<'d, 'i> {
    fn read<T>(mut self, keys: &[&'static str], read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let unknown = self.table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref()));
        if let Some(key) = unknown.min_by_key(|key| key.span().start) {
            return Err(ConfigError::UnknownKey {
                place: self.document.place(key.span().start),
                key: self.key(&key.get_ref().escape_debug().to_string()),
                allowed: list_text(keys),
            });
        }
        let value = read(&mut self)?;
        debug_assert!(self.table.is_empty(), "keys of {} that are allowed and not read: {:?}", self.path, self.table);
        Ok(value)
    }

    /// Takes the value of a key, if it is there.
    pub(super) fn take(&mut self, key: &str) -> Option<Field<'d, 'i>> {
        let value = self.table.remove(key)?;
        let field = Field { document: self.document, key: self.key(key), value };
        self.document.lines.borrow_mut().entry(field.key.clone()).or_insert(field.place().line);
        Some(field)
    }

    /// Takes the value of a key that must be there; `example` says what to write.
    pub(super) fn require(&mut self, key: &str, example: &str) -> Result<Field<'d, 'i>> {
        self.take(key).ok_or_else(|| ConfigError::MissingKey {
            place: self.document.place(self.at),
            key: self.key(key),
            example: example.to_owned(),
        })
    }

    /// Takes and reads a section, or its defaults when it is not there.
    pub(super) fn section<T: Default>(
        &mut self,
        key: &str,
        keys: &[&'static str],
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        match self.take(key) {
            Some(field) => {
                let problem = format!("must be a section; write [{}] and its keys below", field.key);
                field.to_section(&problem)?.read(keys, read)
            }
            None => Ok(T::default()),
        }
    }

    /// Takes and reads the sections of a list, `[[key]]`.
    pub(super) fn sections<T>(
        &mut self,
        key: &str,
        keys: &[&'static str],
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let Some(field) = self.take(key) else { return Ok(Vec::new()) };
        let problem = format!("must be a list of sections; write [[{}]] and its keys below, once for each", field.key);
        field.items(&problem)?.iter().map(|item| item.to_section(&problem)?.read(keys, &mut read)).collect()
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A key's value, or one of a list's.
pub(super) struct Field<'d, 'i> {
    document: &'d Document<'i>,
    key: String,
    value: Spanned<DeValue<'i>>,
}

impl<'d, 'i> Field<'d, 'i> {
    /// The error that says `problem` of this value.
    pub(super) fn refuse(&self, problem: impl Display) -> ConfigError {
        let value = one_line(self.document.text.get(self.value.span()).unwrap_or_default());
        ConfigError::Value { place: self.place(), key: self.key.clone(), value, problem: problem.to_string() }
    }

    /// A text.
    pub(super) fn text(&self, problem: impl Display) -> Result<&str> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.refuse(problem)),
        }
    }

    /// A text that `parse` understands; anything else is refused as it refuses an empty one.
    pub(super) fn parse<T, E: Display>(&self, parse: impl Fn(&str) -> std::result::Result<T, E>) -> Result<T> {
        match (self.value.get_ref(), parse("")) {
            (DeValue::String(text), _) => parse(text).map_err(|problem| self.refuse(problem)),
            (_, Err(problem)) => Err(self.refuse(problem)),
            (_, Ok(_)) => Err(self.refuse("must be a text in quotes")),
        }
    }

    /// One of a few words. `later` are words that the documentation has and this version does not.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)], later: &[&str]) -> Result<T> {
        let words = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        let word = self.text(format!("must be {words}"))?;
        match choices.iter().find(|(known, _)| *known == word) {
            Some((_, choice)) => Ok(*choice),
            None if later.contains(&word) => {
                Err(self.refuse(format!("is not supported by this version; write {words}")))
            }
            None => Err(self.refuse(format!("must be {words}"))),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Result<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.refuse("must be true or false, without quotes")),
        }
    }

    /// A duration in this range of seconds.
    pub(super) fn duration(&self, allowed_s: &RangeInclusive<u64>) -> Result<Duration> {
        let duration = self.parse(units::parse_duration)?;
        let (least, most) = (Duration::from_secs(*allowed_s.start()), Duration::from_secs(*allowed_s.end()));
        if duration < least || duration > most {
            let (least, most) = (units::duration_text(least), units::duration_text(most));
            return Err(self.refuse(format!("is out of range; write a duration from \"{least}\" to \"{most}\"")));
        }
        Ok(duration)
    }

    /// A number, perhaps as a text with `k` or `m`, in this range.
    pub(super) fn size(&self, allowed: &RangeInclusive<u32>) -> Result<u32> {
        let size = match self.value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => Some(self.parse(units::parse_size)?),
        };
        let size = size.and_then(|size| u32::try_from(size).ok()).filter(|size| allowed.contains(size));
        size.ok_or_else(|| {
            let [least, most] = [*allowed.start(), *allowed.end()].map(|end| units::size_text(end.into()));
            self.refuse(format!("is out of range; write a number from \"{least}\" to \"{most}\""))
        })
    }

    /// The values of a list that has some.
    pub(super) fn items(&self, problem: &str) -> Result<Vec<Self>> {
        match self.value.get_ref() {
            DeValue::Array(items) if !items.is_empty() => Ok(items
                .iter()
                .map(|value| Self { document: self.document, key: self.key.clone(), value: value.clone() })
                .collect()),
            _ => Err(self.refuse(problem)),
        }
    }

    /// Yes or no.
    pub(super) fn flag(&self) -> Result<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.refuse("must be true or false, without quotes")),
        }
    }

    /// The line that it stands on.
    pub(super) fn line(&self) -> usize {
        self.place().line
    }

    fn to_section(&self, problem: &str) -> Result<Section<'d, 'i>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(Section {
                document: self.document,
                path: self.key.clone(),
                at: self.value.span().start,
                table: table.clone(),
            }),
            _ => Err(self.refuse(problem)),
        }
    }

    fn place(&self) -> Place {
        self.document.place(self.value.span().start)
    }
}

/// As much of `text` as fits in an error, without line breaks.
fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(QUOTED) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words,
    }
}
