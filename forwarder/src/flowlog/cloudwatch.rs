//! The destination `cloudwatch-logs`: one stream per interface, an event per record, its time the record's start.
//!
//! Limits of PutLogEvents (API reference): 1,048,576 bytes a batch with 26 for each event, 10,000 events, in the order of time,
//! no more than 24 hours apart. The service has no way to recognise a batch that it was sent before: where an answer was
//! lost on its way, the events of that batch are there twice.

use super::aws::{Aws, failed};
use super::destination::Sink;
use super::spool::{Ends, Failed, Segment, SoFar, Spool, Upload};
use super::text::records;
use crate::record::{Batch, Direction, Filter, Format, Interfaces, Record};
use aws_sdk_cloudwatchlogs::Client;
use aws_sdk_cloudwatchlogs::error::ProvideErrorMetadata;
use aws_sdk_cloudwatchlogs::types::InputLogEvent;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

/// Bytes of a batch, and what every event counts besides its text.
const BATCH_BYTES: usize = 1 << 20;
const EVENT_BYTES: usize = 26;
/// Events of a batch.
const BATCH_EVENTS: usize = 10_000;
/// Milliseconds between the first and the last event of a batch; the limit is a day.
const BATCH_SPAN_MS: i64 = 23 * 3_600_000;
/// How long events wait for others to be sent with.
const EVERY: Duration = Duration::from_secs(5);
/// A segment is closed at this size: a few batches.
const SEGMENT: u64 = 4 << 20;

/// Events on their way, by stream.
pub struct CloudWatchSink {
    format: Format,
    spool: Spool,
    /// Open segments by interface id, with what is collected for them.
    streams: BTreeMap<String, (Segment, Vec<u8>)>,
}

impl CloudWatchSink {
    /// Into this spool, with what is still open in it. `true`: a line was torn and has been removed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(format: Format, spool: Spool) -> io::Result<(Self, bool)> {
        let mut torn = false;
        let mut streams = BTreeMap::new();
        for stream in spool.open_segments()? {
            let (segment, was_torn) = spool.segment(&stream)?;
            torn |= was_torn;
            streams.insert(stream, (segment, Vec::new()));
        }
        Ok((Self { format, spool, streams }, torn))
    }

    fn add(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()> {
        let Some(interface) = names.at(interface) else { return Ok(()) };
        let stream = stream_name(&interface.interface_id);
        if !self.streams.contains_key(&stream) {
            let (segment, _) = self.spool.segment(&stream)?;
            self.streams.insert(stream.clone(), (segment, Vec::new()));
        }
        let Some((_, lines)) = self.streams.get_mut(&stream) else { return Ok(()) };
        let at_ms = match record {
            Record::Flow(window, Direction::Ingress | Direction::Egress) => window.first_ms,
            Record::NoData(span) | Record::SkipData(span) => span.start * 1000,
        };
        write!(lines, "{at_ms} ")?;
        self.format.write(lines, record, interface, names);
        Ok(())
    }

    /// What was collected, into the segments: all of it or an error.
    fn write(&mut self) -> io::Result<()> {
        let mut written = Ok(());
        for (segment, lines) in self.streams.values_mut() {
            if !lines.is_empty() {
                written = written.and(self.spool.append(segment, lines));
                lines.clear();
            }
        }
        written
    }
}

/// A stream's name, which is also a file's. Interface ids are what they are; names of the host's may have more.
pub fn stream_name(interface: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    if interface.is_empty() { "unknown".to_owned() } else { interface.chars().map(keep).collect() }
}

impl Sink for CloudWatchSink {
    fn take(&mut self, batch: &Batch, filter: &Filter) -> io::Result<u64> {
        let mut count = 0;
        for (record, interface) in records(batch, filter) {
            self.add(&record, interface, &batch.interfaces)?;
            count += 1;
        }
        self.write()?;
        Ok(count)
    }

    fn status(&mut self, record: &Record<'_>, interface: u16, names: &Interfaces) -> io::Result<()> {
        self.add(record, interface, names)?;
        self.write()
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn poll(&mut self, finish: bool) -> u64 {
        for (stream, (segment, _)) in &mut self.streams {
            let due = finish || segment.age() >= EVERY || segment.length() >= SEGMENT;
            if segment.length() > 0
                && due
                && let Err(error) = self.spool.close(segment, stream)
            {
                let error = crate::error::one_line(&error);
                tracing::error!("flow logs: cannot close a segment for CloudWatch Logs: {error}");
            }
        }
        if finish {
            self.spool.finish();
        }
        self.spool.given_up()
    }

    fn leave(&mut self) -> u64 {
        self.spool.leave();
        self.spool.given_up()
    }

    fn waiting(&self) -> Option<u64> {
        Some(self.spool.waiting() + self.streams.values().map(|(segment, _)| segment.length()).sum::<u64>())
    }
}

/// The service.
pub struct CloudWatch {
    /// The connection.
    pub aws: Aws,
    /// The log group.
    pub log_group: String,
    /// Make the group when it is not there.
    pub create: bool,
    /// The client, once there is one.
    pub client: Option<Client>,
}

impl CloudWatch {
    fn client(&mut self) -> Result<Client, Failed> {
        if self.client.is_none() {
            self.client = Some(Client::new(&self.aws.settings()?));
        }
        self.client.clone().ok_or_else(|| Failed::Again("there is no client".to_owned()))
    }

    /// Puts one batch; returns how many events the service refused.
    fn put(&self, client: &Client, stream: &str, events: &[InputLogEvent]) -> Result<u64, Failed> {
        let put = || {
            let request = client.put_log_events().log_group_name(&self.log_group).log_stream_name(stream);
            let answer = self.aws.wait(request.set_log_events(Some(events.to_vec())).send())?;
            Ok::<_, Failed>(answer.map_err(Box::new))
        };
        let answer = match put()? {
            Err(error) if error.code() == Some("ResourceNotFoundException") => {
                self.make(client, stream)?;
                put()?
            }
            answer => answer,
        };
        // A batch that is refused as a whole will be again.
        let answer = answer.map_err(|error| failed(&error, &["InvalidParameterException"]))?;
        let Some(refused) = answer.rejected_log_events_info() else { return Ok(0) };
        let (count, place) = (events.len() as u64, |index: Option<i32>| index.map_or(0, |index| index.max(0) as u64));
        let old = place(refused.too_old_log_event_end_index()).max(place(refused.expired_log_event_end_index()));
        let new = refused.too_new_log_event_start_index().map_or(0, |index| count - (index.max(0) as u64).min(count));
        Ok(old + new)
    }

    /// The stream, and if it is wanted the group.
    fn make(&self, client: &Client, stream: &str) -> Result<(), Failed> {
        const THERE: &str = "ResourceAlreadyExistsException";
        if self.create {
            let made = self.aws.wait(client.create_log_group().log_group_name(&self.log_group).send())?;
            if let Err(error) = made
                && error.code() != Some(THERE)
            {
                return Err(failed(&error, &[]));
            }
        }
        let request = client.create_log_stream().log_group_name(&self.log_group).log_stream_name(stream);
        match self.aws.wait(request.send())? {
            Err(error) if error.code() != Some(THERE) => Err(failed(&error, &[])),
            _ => Ok(()),
        }
    }
}

impl Upload for CloudWatch {
    fn watch(&mut self, ends: Ends) {
        self.aws.watch(ends);
    }

    fn upload(&mut self, tag: &str, lines: &[u8], so_far: &mut SoFar) -> Result<(), Failed> {
        let client = self.client()?;
        let events = events(lines);
        while let Some(rest) = events.get(so_far.done..).filter(|rest| !rest.is_empty()) {
            let count = batch(rest);
            let built = rest[..count]
                .iter()
                .map(|(at_ms, text)| InputLogEvent::builder().timestamp(*at_ms).message(*text).build());
            let built: Vec<_> = built.collect::<Result<_, _>>().map_err(|error| Failed::Never(error.to_string()))?;
            match self.put(&client, tag, &built) {
                Ok(refused) => so_far.refused += refused,
                Err(Failed::Never(why)) => {
                    tracing::error!("flow logs: CloudWatch Logs will never take {count} records: {why}");
                    so_far.refused += count as u64;
                }
                Err(again) => return Err(again),
            }
            so_far.done += count;
        }
        Ok(())
    }
}

/// Events in the order of their time.
fn events(lines: &[u8]) -> Vec<(i64, &str)> {
    let lines = lines.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let event = |line: &'_ str| -> Option<(i64, usize)> {
        let (at_ms, text) = line.split_once(' ')?;
        Some((at_ms.parse().ok()?, line.len() - text.len()))
    };
    let mut events: Vec<_> = lines.filter_map(|line| event(line).map(|(at_ms, from)| (at_ms, &line[from..]))).collect();
    events.sort_by_key(|(at_ms, _)| *at_ms);
    events
}

/// How many events fit one batch.
fn batch(events: &[(i64, &str)]) -> usize {
    let (mut bytes, first) = (0, events.first().map_or(0, |(at_ms, _)| *at_ms));
    let fits = |(at_ms, text): &&(i64, &str)| {
        bytes += text.len() + EVENT_BYTES;
        bytes <= BATCH_BYTES && *at_ms - first <= BATCH_SPAN_MS
    };
    events.iter().take(BATCH_EVENTS).take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_services_limits() {
        let short = vec![(0, "x"); 25_000];
        assert_eq!(batch(&short), 10_000);
        let text = "x".repeat(1000);
        assert_eq!(batch(&vec![(0, text.as_str()); 5000]), 1_048_576 / 1026);
        let days: Vec<_> = (0..5).map(|day| (day * 86_400_000 / 2, "x")).collect();
        assert_eq!(batch(&days), 2);
    }

    #[test]
    fn events_are_sorted_by_time_and_keep_their_text() {
        assert_eq!(events(b"20 b c\n10 a\n20 d\n"), [(10, "a"), (20, "b c"), (20, "d")]);
        assert_eq!(stream_name("eth0/1 x"), "eth0_1_x");
    }
}
