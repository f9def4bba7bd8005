//! Records as lines of text, whatever they are appended to.

use super::destination::Sink;
use crate::config::Filter;
use crate::record::{Batch, Direction, Format, Interfaces, Record, Window};
use std::io::{self, Write};

/// Where lines go.
pub trait Lines: Send {
    /// Appends whole lines, all or none.
    ///
    /// # Errors
    /// When none is kept.
    fn append(&mut self, lines: &[u8]) -> io::Result<()>;

    /// Time has passed, or all is to be finished now. Returns lines that were given up.
    fn poll(&mut self, finish: bool) -> u64 {
        let _ = finish;
        0
    }
}

/// Lines of a format.
#[derive(Debug)]
pub struct Text<L> {
    format: Format,
    lines: L,
    buffer: Vec<u8>,
}

impl<L> Text<L> {
    /// Lines of `format` to `lines`.
    pub fn new(format: Format, lines: L) -> Self {
        Self { format, lines, buffer: Vec::new() }
    }
}

/// Whether a filter lets a window through.
pub fn wanted(filter: Filter, window: &Window) -> bool {
    match filter {
        Filter::All => true,
        Filter::Accept => window.refused.is_none(),
        Filter::Reject => window.refused.is_some(),
    }
}

/// The records of a batch that a filter lets through, with their interfaces.
pub fn records(batch: &Batch, filter: Filter) -> impl Iterator<Item = (Record<'_>, u16)> {
    batch.windows.iter().filter(move |window| wanted(filter, window)).flat_map(|window| {
        let record = move |(interface, direction): (u16, Direction)| (Record::Flow(window, direction), interface);
        window.records().map(record)
    })
}

impl<L: Lines> Sink for Text<L> {
    fn take(&mut self, batch: &Batch, filter: Filter) -> io::Result<u64> {
        self.buffer.clear();
        let mut count = 0;
        for (record, interface) in records(batch, filter) {
            let Some(interface) = batch.interfaces.at(interface) else { continue };
            self.format.write(&mut self.buffer, &record, interface, &batch.interfaces);
            count += 1;
        }
        self.lines.append(&self.buffer)?;
        Ok(count)
    }

    fn status(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()> {
        self.buffer.clear();
        if let Some(interface) = names.at(interface) {
            self.format.write(&mut self.buffer, record, interface, names);
        }
        self.lines.append(&self.buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        // What the kernel has survives this process; only a crash of the machine does it not.
        Ok(())
    }

    fn poll(&mut self, finish: bool) -> u64 {
        self.lines.poll(finish)
    }
}

/// Standard output.
#[derive(Debug)]
pub struct Stdout;

impl Lines for Stdout {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(lines)?;
        out.flush()
    }
}
