//! From a text to a test.

use super::{End, FilterError, Test, Wanted};
use crate::record::{Field, Kind, protocol_named, protocol_names};
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// How deep parentheses may be: nobody writes more, and the stack is finite.
const DEEPEST: u32 = 32;

type Result<T> = std::result::Result<T, FilterError>;

fn refuse<T>(problem: String) -> Result<T> {
    Err(FilterError(problem))
}

/// Reads all of a text.
pub(super) fn test(text: &str) -> Result<Test> {
    let mut words = Words { words: split(text), at: 0, depth: 0 };
    if words.words.is_empty() {
        return refuse("is empty; write `all`, `reject` or tests such as `srcaddr 10.0.1.0/24 and dstport 443`".into());
    }
    let test = words.any()?;
    match words.peek() {
        None => Ok(test),
        Some(word) => refuse(format!("has `{word}` where `and` or `or` is expected")),
    }
}

/// Words, parentheses and operators.
fn split(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        '(' | ')' => 0,
        '=' | '!' | '<' | '>' | '&' | '|' => 1,
        c if c.is_whitespace() => 2,
        _ => 3,
    };
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match kind(first) {
            0 => 1,
            own => rest.find(|c| kind(c) != own).unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at(end);
        if kind(first) != 2 {
            words.push(word);
        }
        rest = after;
    }
    words
}

struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
    depth: u32,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        self.at += 1;
        self.words.get(self.at - 1).copied()
    }

    fn takes(&mut self, words: &[&str]) -> bool {
        let is_one = self.peek().is_some_and(|word| words.iter().any(|other| word.eq_ignore_ascii_case(other)));
        self.at += usize::from(is_one);
        is_one
    }

    fn any(&mut self) -> Result<Test> {
        let mut tests = vec![self.all()?];
        while self.takes(&["or", "||"]) {
            tests.push(self.all()?);
        }
        Ok(if tests.len() == 1 { tests.remove(0) } else { Test::Or(tests) })
    }

    fn all(&mut self) -> Result<Test> {
        let mut tests = vec![self.one()?];
        while self.takes(&["and", "&&"]) {
            tests.push(self.one()?);
        }
        Ok(if tests.len() == 1 { tests.remove(0) } else { Test::And(tests) })
    }

    fn one(&mut self) -> Result<Test> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return refuse("has too many parentheses".into());
        }
        let test = if self.takes(&["not", "!"]) {
            self.one().map(|test| Test::Not(Box::new(test)))
        } else if self.takes(&["("]) {
            let inner = self.any()?;
            if self.takes(&[")"]) { Ok(inner) } else { refuse("has a `(` without its `)`".into()) }
        } else {
            self.simple()
        };
        self.depth -= 1;
        test
    }

    fn simple(&mut self) -> Result<Test> {
        let Some(word) = self.next() else { return refuse("ends where a test is expected".into()) };
        match word.to_ascii_lowercase().as_str() {
            "all" => return Ok(Test::Always),
            "accept" => return Ok(Test::Accepted(true)),
            "reject" => return Ok(Test::Accepted(false)),
            "src" => return self.end(End::Source),
            "dst" => return self.end(End::Destination),
            "host" | "net" | "port" => {
                self.at -= 1;
                return self.end(End::Any);
            }
            name => {
                if let Some(field) = Field::named(name) {
                    return self.field(field);
                }
                if let Some(number) = protocol_named(name) {
                    let number = i64::from(number);
                    return Ok(Test::OneOf(Field::Protocol, vec![Wanted::Numbers(number..=number)]));
                }
            }
        }
        let protocols = protocol_names();
        refuse(format!(
            "has `{word}`, which is no test; write a field and its value such as `dstport 443`, or host, net, port (with src or \
             dst before it), accept, reject, all, {protocols}"
        ))
    }

    /// `[host | net | port] VALUES`, behind `src` or `dst`.
    fn end(&mut self, end: End) -> Result<Test> {
        if self.takes(&["port"]) {
            let ports = self.values("port", |text| range(text, u16::MAX.into()))?;
            let narrow = |range: RangeInclusive<i64>| *range.start() as u16..=*range.end() as u16;
            return Ok(Test::Port(end, ports.into_iter().map(narrow).collect()));
        }
        self.takes(&["host", "net"]);
        Ok(Test::Host(end, self.values("host", prefix)?))
    }

    fn field(&mut self, field: Field) -> Result<Test> {
        let name = field.name();
        let operator = match self.peek() {
            Some(word @ ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=")) => {
                self.at += 1;
                word
            }
            _ => "=",
        };
        if matches!(operator, "<" | "<=" | ">" | ">=") {
            let limit = self.values(name, |text| text.parse::<i64>().ok())?;
            let ([limit], Kind::Int32 | Kind::Int64) = (limit.as_slice(), field.kind()) else {
                return refuse(format!("compares `{name}`, which takes one number of a field that is a number"));
            };
            return Ok(Test::Within(
                field,
                match operator {
                    "<" => i64::MIN..=limit.saturating_sub(1),
                    "<=" => i64::MIN..=*limit,
                    ">" => limit.saturating_add(1)..=i64::MAX,
                    _ => *limit..=i64::MAX,
                },
            ));
        }
        let one_of = Test::OneOf(field, self.values(name, |text| wanted(field, text))?);
        Ok(if operator == "!=" { Test::Not(Box::new(one_of)) } else { one_of })
    }

    /// A list with commas, each of which `read` must understand.
    fn values<T>(&mut self, of: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
        let Some(word) = self.next().filter(|word| !matches!(*word, "(" | ")")) else {
            return refuse(format!("needs a value after `{of}`"));
        };
        let one = |text: &str| {
            read(text).map_or_else(|| refuse(format!("has `{text}`, which `{of}` cannot be compared with, in a filter; a number, address or prefix is needed there")), Ok)
        };
        word.split(',').map(one).collect()
    }
}

fn wanted(field: Field, text: &str) -> Option<Wanted> {
    if text == "-" {
        return Some(Wanted::None);
    }
    match field.kind() {
        Kind::String if field.name().ends_with("addr") => prefix(text).map(Wanted::Addresses),
        Kind::String => Some(Wanted::Text(text.to_owned())),
        Kind::Int32 | Kind::Int64 if field == Field::Protocol && protocol_named(text).is_some() => {
            protocol_named(text).map(|number| Wanted::Numbers(number.into()..=number.into()))
        }
        Kind::Int32 | Kind::Int64 => range(text, i64::MAX).map(Wanted::Numbers),
    }
}

/// `80` or `8000-8100`.
fn range(text: &str, most: i64) -> Option<RangeInclusive<i64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last <= most).then_some(first..=last)
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
