//! Records as lines of text, whatever they are appended to.

use super::destination::Sink;
use crate::record::{Batch, Direction, Filter, Format, Interfaces, Line, Record, Window};
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

    /// See [`Sink::leave`].
    fn leave(&mut self) -> u64 {
        self.poll(true)
    }

    /// Bytes that wait on disk for a service; `None`: nothing ever does.
    fn waiting(&self) -> Option<u64> {
        None
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

/// Whether a filter lets one of a window's records through.
pub fn wanted(filter: &Filter, window: &Window, names: &Interfaces) -> bool {
    window.records().any(|record| is_wanted(filter, window, record, names))
}

fn is_wanted(filter: &Filter, window: &Window, (number, direction): (u16, Direction), names: &Interfaces) -> bool {
    names.at(number).is_some_and(|interface| filter.matches(&Line { window, direction, interface, names }))
}

/// The records of a batch that a filter lets through, with their interfaces.
pub fn records<'a>(batch: &'a Batch, filter: &'a Filter) -> impl Iterator<Item = (Record<'a>, u16)> {
    batch.windows.iter().flat_map(move |window| {
        let wanted = window.records().filter(|record| is_wanted(filter, window, *record, &batch.interfaces));
        wanted.map(|(interface, direction)| (Record::Flow(window, direction), interface))
    })
}

impl<L: Lines> Sink for Text<L> {
    fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64> {
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

    fn leave(&mut self) -> u64 {
        self.lines.leave()
    }

    fn waiting(&self) -> Option<u64> {
        self.lines.waiting()
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
