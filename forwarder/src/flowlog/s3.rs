//! The destination `s3`: objects with AWS's paths and names (AWS, "Publish flow logs to Amazon S3"), gzip text with a header
//! line, or Parquet.
//!
//! An object's name follows from its segment's, so that one that is sent twice is one object. A segment begins with the
//! header of its own lines: when it is sent, another format may have been configured.

use super::aws::{Aws, failed};
use super::columns;
use super::spool::{Ends, Failed, Segment, SoFar, Spool, Upload};
use super::text::Lines;
use crate::config::Objects;
use crate::record::Format;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::primitives::ByteStream;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::time::SystemTime;

/// AWS begins another object at this size.
const LARGEST: u64 = 75 << 20;

/// Lines on their way into objects.
#[derive(Debug)]
pub struct S3Lines {
    spool: Spool,
    segment: Segment,
    objects: Objects,
    /// What every segment begins with.
    header: String,
    /// A header and lines on their way into a segment.
    buffer: Vec<u8>,
}

impl S3Lines {
    /// Lines of `format` into this spool, with what is still open in it. `true`: its last line was torn and has been removed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(spool: Spool, objects: Objects, format: &Format) -> io::Result<(Self, bool)> {
        let (segment, torn) = spool.segment("current")?;
        let mut lines = Self { spool, segment, objects, header: format.header(), buffer: Vec::new() };
        if lines.segment.length() > 0 && !lines.segment.begins_with(&lines.header)? {
            lines.close()?;
        }
        Ok((lines, torn))
    }

    fn close(&mut self) -> io::Result<()> {
        let minute = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let minute: String = minute.chars().filter(|c| !matches!(c, '-' | ':')).take("YYYYmmddTHHMM".len()).collect();
        self.spool.close(&mut self.segment, &format!("{minute}Z_{:08x}", fastrand::u32(..)))
    }
}

impl Lines for S3Lines {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.segment.length() > 0 || lines.is_empty() {
            return self.spool.append(&mut self.segment, lines);
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(self.header.as_bytes());
        self.buffer.extend_from_slice(lines);
        self.spool.append(&mut self.segment, &self.buffer)
    }

    fn poll(&mut self, finish: bool) -> u64 {
        let due = finish || self.segment.age() >= self.objects.every || self.segment.length() >= LARGEST;
        // A crash may have left a header alone.
        if due
            && self.segment.length() > self.header.len() as u64
            && let Err(error) = self.close()
        {
            tracing::error!(error = crate::error::one_line(&error), "flow logs: cannot close a segment for S3");
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
        Some(self.spool.waiting() + self.segment.length())
    }
}

/// The service.
pub struct S3 {
    /// The connection.
    pub aws: Aws,
    /// The bucket.
    pub bucket: String,
    /// What comes before `AWSLogs`.
    pub prefix: String,
    /// How objects are made.
    pub objects: Objects,
    /// What lines are that do not say it, as those of versions up to 0.1 do not.
    pub format: Format,
    /// The client, once there is one.
    pub client: Option<Client>,
}

impl S3 {
    fn client(&mut self) -> Result<Client, Failed> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let settings = self.aws.settings()?;
        let config = aws_sdk_s3::config::Builder::from(&settings)
            .force_path_style(self.aws.has_endpoint())
            // Not every service that speaks S3 knows the newer checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .build();
        let client = Client::from_conf(config);
        self.client = Some(client.clone());
        Ok(client)
    }

    /// The object, and how many lines are not in it.
    fn body(&self, lines: &[u8]) -> Result<(Vec<u8>, u64), String> {
        let (format, lines) = self.format_of(lines);
        if self.objects.parquet {
            return columns::file(&format, lines).map_err(|error| error.to_string());
        }
        let text = || -> io::Result<Vec<u8>> {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(format.header().as_bytes())?;
            encoder.write_all(lines)?;
            encoder.finish()
        };
        text().map(|body| (body, 0)).map_err(|error| error.to_string())
    }

    /// A segment's own format, and its lines without what says so.
    fn format_of<'a>(&self, lines: &'a [u8]) -> (Format, &'a [u8]) {
        let end = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1);
        let (first, rest) = lines.split_at(end);
        let named = std::str::from_utf8(first).ok().and_then(Format::of_header);
        named.map_or_else(|| (self.format.clone(), lines), |format| (format, rest))
    }
}

impl Upload for S3 {
    fn watch(&mut self, ends: Ends) {
        self.aws.watch(ends);
    }

    fn upload(&mut self, tag: &str, lines: &[u8], so_far: &mut SoFar) -> Result<(), Failed> {
        let client = self.client()?;
        let (body, left_out) = self.body(lines).map_err(Failed::Never)?;
        let (account, region) = (self.aws.identity().account_id(), self.aws.region());
        let key = key(&self.prefix, &self.objects, [&account, &region], tag);
        let kind = if self.objects.parquet { "application/octet-stream" } else { "application/gzip" };
        let request = client.put_object().bucket(&self.bucket).key(key).content_type(kind).body(ByteStream::from(body));
        self.aws.wait(request.send())?.map_err(|error| failed(&error, &["EntityTooLarge"]))?;
        so_far.refused += left_out;
        Ok(())
    }

    fn records(&self, lines: &[u8]) -> u64 {
        self.format_of(lines).1.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

/// The object's whole name, from a tag as `20260102T0304Z_hash`.
fn key(prefix: &str, objects: &Objects, [account, region]: [&str; 2], tag: &str) -> String {
    let (year, month, day, hour) = (part(tag, 0, 4), part(tag, 4, 6), part(tag, 6, 8), part(tag, 9, 11));
    let mut key = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    key += &if objects.hive {
        format!(
            "AWSLogs/aws-account-id={account}/aws-service=vpcflowlogs/aws-region={region}/year={year}/month={month}/day={day}/"
        )
    } else {
        format!("AWSLogs/{account}/vpcflowlogs/{region}/{year}/{month}/{day}/")
    };
    if objects.hourly {
        key += &if objects.hive { format!("hour={hour}/") } else { format!("{hour}/") };
    }
    let ending = if objects.parquet { "parquet" } else { "gz" };
    key + &format!("{account}_vpcflowlogs_{region}_{}_{tag}.log.{ending}", objects.flow_log_id)
}

fn part(tag: &str, from: usize, to: usize) -> &str {
    tag.get(from..to).unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn names_are_awss() {
        let plain = Objects {
            parquet: false,
            hive: false,
            hourly: false,
            every: Duration::from_secs(300),
            flow_log_id: "fl-1234abcd".to_owned(),
        };
        let name = |prefix: &str, objects: &Objects| {
            key(prefix, objects, ["123456789012", "us-east-1"], "20180620T1620Z_fe123456")
        };
        assert_eq!(
            name("", &plain),
            "AWSLogs/123456789012/vpcflowlogs/us-east-1/2018/06/20/\
             123456789012_vpcflowlogs_us-east-1_fl-1234abcd_20180620T1620Z_fe123456.log.gz"
        );
        let all = Objects { parquet: true, hive: true, hourly: true, ..plain };
        assert_eq!(
            name("edge/logs", &all),
            "edge/logs/AWSLogs/aws-account-id=123456789012/aws-service=vpcflowlogs/aws-region=us-east-1/year=2018/month=06/\
             day=20/hour=16/123456789012_vpcflowlogs_us-east-1_fl-1234abcd_20180620T1620Z_fe123456.log.parquet"
        );
    }
}
