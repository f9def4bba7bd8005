//! The destination `s3`: objects with AWS's paths and names (AWS, "Publish flow logs to Amazon S3"), gzip text with a header
//! line, or Parquet.
//!
//! An object's name follows from its segment's, so that one that is sent twice is one object.

use super::aws::{Aws, failed};
use super::columns;
use super::spool::{Failed, Segment, Spool, Upload};
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
}

impl S3Lines {
    /// Into this spool, with what is still open in it. `true`: its last line was torn and has been removed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(spool: Spool, objects: Objects) -> io::Result<(Self, bool)> {
        let (segment, torn) = spool.segment("current")?;
        Ok((Self { spool, segment, objects }, torn))
    }

    fn close(&mut self) {
        if self.segment.length() == 0 {
            return;
        }
        let minute = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let minute: String = minute.chars().filter(|c| !matches!(c, '-' | ':')).take("YYYYmmddTHHMM".len()).collect();
        let tag = format!("{minute}Z_{:08x}", fastrand::u32(..));
        if let Err(error) = self.spool.close(&mut self.segment, &tag) {
            tracing::error!(error = crate::error::one_line(&error), "flow logs: cannot close a segment for S3");
        }
    }
}

impl Lines for S3Lines {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.spool.append(&mut self.segment, lines)
    }

    fn poll(&mut self, finish: bool) -> u64 {
        if finish || self.segment.age() >= self.objects.every || self.segment.length() >= LARGEST {
            self.close();
        }
        if finish {
            self.spool.finish();
        }
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
    /// What the lines are.
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
        if self.objects.parquet {
            return columns::file(&self.format, lines).map_err(|error| error.to_string());
        }
        let text = || -> io::Result<Vec<u8>> {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(self.format.header().as_bytes())?;
            encoder.write_all(lines)?;
            encoder.finish()
        };
        text().map(|body| (body, 0)).map_err(|error| error.to_string())
    }
}

impl Upload for S3 {
    fn upload(&mut self, tag: &str, lines: &[u8]) -> Result<u64, Failed> {
        let client = self.client()?;
        let (body, left_out) = self.body(lines).map_err(Failed::Never)?;
        let (account, region) = (self.aws.identity().account_id(), self.aws.region());
        let key = key(&self.prefix, &self.objects, [&account, &region], tag);
        let kind = if self.objects.parquet { "application/octet-stream" } else { "application/gzip" };
        let request = client.put_object().bucket(&self.bucket).key(key).content_type(kind).body(ByteStream::from(body));
        self.aws.wait(request.send()).map_err(|error| failed(&error, &["EntityTooLarge"]))?;
        Ok(left_out)
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
