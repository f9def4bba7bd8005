//! `[flow_logs]`: which records, of what, and where they go.

use super::document::{Field, Section};
use super::error::Result;
use crate::record::{Filter, Format};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const KEYS: &[&str] = &[
    "interval",
    "format",
    "filter",
    "account_id",
    "instance_id",
    "region",
    "az_id",
    "vpc_id",
    "interface",
    "destination",
];
const INTERFACE_KEYS: &[&str] = &["name", "interface_id", "subnet_id", "vpc_id", "account_id"];
const DESTINATION_KEYS: &[&str] = &[
    "kind",
    "interval",
    "format",
    "filter",
    "path",
    "rotate_size",
    "rotate_every",
    "keep",
    "gzip",
    "collector",
    "log_group",
    "create_log_group",
    "bucket",
    "prefix",
    "region",
    "endpoint",
    "file_format",
    "hive",
    "hourly",
    "every",
    "flow_log_id",
    "spool",
    "spool_size",
];

/// Lengths of a window, seconds.
const INTERVALS: RangeInclusive<u64> = 1..=600;

/// `[flow_logs]`. Without destinations nothing is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowLogs {
    /// What the instance is called where its metadata does not say.
    pub identity: Identity,
    /// The same of interfaces, by name.
    pub interfaces: BTreeMap<String, InterfaceIdentity>,
    /// Where records go.
    pub destinations: Vec<Destination>,
}

/// What records call the instance. Empty: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `account-id`.
    pub account_id: String,
    /// `instance-id`.
    pub instance_id: String,
    /// `region`.
    pub region: String,
    /// `az-id`.
    pub az_id: String,
    /// `vpc-id`.
    pub vpc_id: String,
}

/// What records call an interface. Empty: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceIdentity {
    /// `interface-id`.
    pub interface_id: String,
    /// `subnet-id`.
    pub subnet_id: String,
    /// `vpc-id`.
    pub vpc_id: String,
    /// `account-id`.
    pub account_id: String,
}

/// `[[flow_logs.destination]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Length of a window.
    pub interval: Duration,
    /// Fields of a record.
    pub format: Format,
    /// Which records.
    pub filter: Filter,
    /// Where to.
    pub kind: Kind,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// When the next one is begun.
        rotation: Rotation,
    },
    /// Standard output.
    Stdout,
    /// An IPFIX collector, over UDP.
    Ipfix {
        /// Its address.
        collector: SocketAddr,
    },
    /// CloudWatch Logs.
    CloudWatch {
        /// The log group.
        log_group: String,
        /// Make the group when it is not there.
        create: bool,
        /// How to get there.
        cloud: Cloud,
    },
    /// Objects in S3.
    S3 {
        /// The bucket.
        bucket: String,
        /// What comes before `AWSLogs`, without slashes at its ends.
        prefix: String,
        /// How objects are made.
        objects: Objects,
        /// How to get there.
        cloud: Cloud,
    },
}

impl Kind {
    /// Whether records would mix with the other's: each has its place for itself, and its books by that place.
    fn is_where(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { path, .. }, Self::File { path: other, .. }) => path == other,
            (Self::Stdout, Self::Stdout) => true,
            (Self::Ipfix { collector }, Self::Ipfix { collector: other }) => collector == other,
            (Self::CloudWatch { log_group, .. }, Self::CloudWatch { log_group: other, .. }) => log_group == other,
            (Self::S3 { bucket: a, prefix: b, .. }, Self::S3 { bucket: c, prefix: d, .. }) => (a, b) == (c, d),
            _ => false,
        }
    }
}

/// When a file is put away, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// At this size, bytes.
    pub size: Option<u32>,
    /// At this age.
    pub every: Option<Duration>,
    /// How many are kept.
    pub keep: u32,
    /// Compress them.
    pub gzip: bool,
}

impl Default for Rotation {
    /// At most some 1.5 GB before compression, which makes a tenth of it.
    fn default() -> Self {
        Self { size: Some(100 << 20), every: None, keep: 14, gzip: true }
    }
}

/// How objects are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// Columns instead of lines.
    pub parquet: bool,
    /// `name=value` in the path.
    pub hive: bool,
    /// A prefix for every hour.
    pub hourly: bool,
    /// How often one is made.
    pub every: Duration,
    /// Which flow log their names say they are of. Empty: made from the destination.
    pub flow_log_id: String,
}

/// How to get to a service of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// The region. Empty: the instance's.
    pub region: String,
    /// Another address than the service's own. Empty: none.
    pub endpoint: String,
    /// Where what waits is kept.
    pub spool: PathBuf,
    /// How much may wait, bytes.
    pub spool_bytes: u32,
}

/// What destinations have unless they say otherwise.
struct Common {
    interval: Duration,
    format: Format,
    filter: Filter,
}

impl FlowLogs {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self> {
        // A minute, as AWS's on Nitro.
        let common = Common { interval: Duration::from_secs(60), format: Format::default(), filter: Filter::All };
        let common = common.read(section)?;
        let identity = Identity {
            account_id: word(section, "account_id")?,
            instance_id: word(section, "instance_id")?,
            region: word(section, "region")?,
            az_id: word(section, "az_id")?,
            vpc_id: word(section, "vpc_id")?,
        };
        let interfaces = section.sections("interface", INTERFACE_KEYS, |section| {
            let name = section.require("name", "name = \"ens5\"")?.text("must be an interface's name")?.to_owned();
            let identity = InterfaceIdentity {
                interface_id: word(section, "interface_id")?,
                subnet_id: word(section, "subnet_id")?,
                vpc_id: word(section, "vpc_id")?,
                account_id: word(section, "account_id")?,
            };
            Ok((name, identity))
        })?;
        let mut destinations = Vec::new();
        section.sections("destination", DESTINATION_KEYS, |section| {
            let own = Common { format: common.format.clone(), filter: common.filter.clone(), ..common };
            read_destination(section, own, &destinations).map(|read| destinations.push(read))
        })?;
        Ok(Self { identity, interfaces: interfaces.into_iter().collect(), destinations })
    }
}

impl Common {
    fn read(mut self, section: &mut Section<'_, '_>) -> Result<Self> {
        if let Some(field) = section.take("interval") {
            self.interval = field.duration(&INTERVALS)?;
            if self.interval.subsec_nanos() != 0 {
                return Err(field.refuse("is not whole seconds; write one such as \"10s\""));
            }
        }
        if let Some(field) = section.take("format") {
            self.format = field.parse(Format::parse)?;
        }
        if let Some(field) = section.take("filter") {
            self.filter = field.parse(str::parse)?;
        }
        Ok(self)
    }
}

/// An id: one word, because records are separated by spaces.
fn word(section: &mut Section<'_, '_>, key: &str) -> Result<String> {
    let Some(field) = section.take(key) else { return Ok(String::new()) };
    text(&field, "one word, such as an id of AWS's")
}

fn text(field: &Field<'_, '_>, what: &str) -> Result<String> {
    let text = field.text(format!("must be {what}"))?;
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(field.refuse(format!("must be {what}, without spaces")));
    }
    Ok(text.to_owned())
}

fn read_destination(section: &mut Section<'_, '_>, common: Common, before: &[Destination]) -> Result<Destination> {
    let Common { interval, format, filter } = common.read(section)?;
    let field = section.require("kind", "kind = \"file\"")?;
    let kinds = ["file", "stdout", "ipfix", "cloudwatch-logs", "s3"];
    let kind = match field.choice(&kinds.map(|kind| (kind, kind)), &[])? {
        "file" => read_file(section)?,
        "stdout" => Kind::Stdout,
        "ipfix" => {
            let collector = section.require("collector", "collector = \"192.0.2.10:4739\"")?;
            let parse =
                |text: &str| text.parse().map_err(|_| "must be an address and a port, such as \"192.0.2.10:4739\"");
            Kind::Ipfix { collector: collector.parse(parse)? }
        }
        #[cfg(not(feature = "aws"))]
        _ => return Err(field.refuse("is not in this binary, which was built without the feature `aws`")),
        #[cfg(feature = "aws")]
        "s3" => read_s3(section)?,
        #[cfg(feature = "aws")]
        _ => read_cloudwatch(section)?,
    };
    if before.iter().any(|other| other.kind.is_where(&kind)) {
        return Err(field.refuse("leads where another destination does already; give each its own place"));
    }
    // What is left is another kind's.
    for key in DESTINATION_KEYS {
        if let Some(other) = section.take(key) {
            return Err(other.refuse(format!("is not for destinations of this kind; remove `{key}`")));
        }
    }
    Ok(Destination { interval, format, filter, kind })
}

fn read_file(section: &mut Section<'_, '_>) -> Result<Kind> {
    let example = "path = \"/var/log/forwarder/flow.log\"";
    let path = PathBuf::from(section.require("path", example)?.text("must be a file's name")?);
    let mut rotation = Rotation::default();
    if let Some(field) = section.take("rotate_size") {
        rotation.size = Some(field.size(&(1 << 10..=u32::MAX))?);
    }
    if let Some(field) = section.take("rotate_every") {
        rotation.every = Some(field.duration(&(1..=366 * 86_400))?);
    }
    if let Some(field) = section.take("keep") {
        rotation.keep = field.size(&(1..=100_000))?;
    }
    if let Some(field) = section.take("gzip") {
        rotation.gzip = field.boolean()?;
    }
    Ok(Kind::File { path, rotation })
}

#[cfg(feature = "aws")]
fn read_s3(section: &mut Section<'_, '_>) -> Result<Kind> {
    let bucket = text(&section.require("bucket", "bucket = \"my-flow-logs\"")?, "a bucket's name")?;
    let prefix = match section.take("prefix") {
        Some(field) => {
            let prefix = text(&field, "a prefix such as \"logs/edge\"")?;
            if prefix.split('/').any(|part| part == "AWSLogs") {
                return Err(field.refuse("has AWSLogs in it, which AWS reserves and is put behind it anyway"));
            }
            prefix.trim_matches('/').to_owned()
        }
        None => String::new(),
    };
    let parquet = match section.take("file_format") {
        Some(field) => field.choice(&[("plain-text", false), ("parquet", true)], &[])?,
        None => false,
    };
    let objects = Objects {
        parquet,
        hive: section.take("hive").map_or(Ok(false), |field| field.boolean())?,
        hourly: section.take("hourly").map_or(Ok(false), |field| field.boolean())?,
        // As AWS.
        every: section.take("every").map_or(Ok(Duration::from_secs(300)), |field| field.duration(&(1..=3600)))?,
        flow_log_id: word(section, "flow_log_id")?,
    };
    Ok(Kind::S3 { bucket, prefix, objects, cloud: read_cloud(section)? })
}

#[cfg(feature = "aws")]
fn read_cloudwatch(section: &mut Section<'_, '_>) -> Result<Kind> {
    let log_group = text(&section.require("log_group", "log_group = \"/forwarder/flow\"")?, "a log group's name")?;
    let create = section.take("create_log_group").map_or(Ok(false), |field| field.boolean())?;
    Ok(Kind::CloudWatch { log_group, create, cloud: read_cloud(section)? })
}

#[cfg(feature = "aws")]
fn read_cloud(section: &mut Section<'_, '_>) -> Result<Cloud> {
    let spool = match section.take("spool") {
        Some(field) => PathBuf::from(field.text("must be a directory's name")?),
        None => PathBuf::from("/var/lib/forwarder/flow-logs"),
    };
    let spool_bytes = match section.take("spool_size") {
        Some(field) => field.size(&(1 << 16..=u32::MAX))?,
        // Some hours of a busy gateway's records, and little on any disk.
        None => 256 << 20,
    };
    Ok(Cloud { region: word(section, "region")?, endpoint: word(section, "endpoint")?, spool, spool_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn read(text: &str) -> FlowLogs {
        parse(text, "test").expect("a good config").flow_logs
    }

    fn refusal(text: &str) -> String {
        parse(text, "test").expect_err("a bad config").to_string()
    }

    #[test]
    fn without_destinations_nothing_is_logged() {
        assert_eq!(read(""), FlowLogs::default());
    }

    #[test]
    fn destinations_have_the_sections_settings_unless_they_have_their_own() {
        let logs = read(
            "[flow_logs]\ninterval = \"10s\"\nfilter = \"reject\"\naccount_id = \"123456789012\"\n\
             [[flow_logs.interface]]\nname = \"ens5\"\ninterface_id = \"eni-1\"\n\
             [[flow_logs.destination]]\nkind = \"stdout\"\n\
             [[flow_logs.destination]]\nkind = \"file\"\npath = \"/tmp/x\"\ninterval = \"1s\"\nfilter = \"all\"\n\
             format = \"${version} ${rtt-src}\"\nrotate_size = \"1m\"\ngzip = false\n",
        );
        assert_eq!(logs.identity.account_id, "123456789012");
        assert_eq!(logs.interfaces["ens5"].interface_id, "eni-1");
        let [stdout, file] = logs.destinations.as_slice() else { panic!("two destinations") };
        assert_eq!((stdout.interval.as_secs(), &stdout.filter, &stdout.kind), (10, &Filter::Reject, &Kind::Stdout));
        assert_eq!((file.interval.as_secs(), &file.filter), (1, &Filter::All));
        assert_eq!(file.format.text(), "${version} ${rtt-src}");
        let rotation = Rotation { size: Some(1 << 20), gzip: false, ..Rotation::default() };
        assert_eq!(file.kind, Kind::File { path: "/tmp/x".into(), rotation });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_line() {
        let interval = refusal("[flow_logs]\ninterval = \"601s\"");
        assert!(interval.contains("test:2") && interval.contains("\"1s\" to \"600s\""), "{interval}");
        let format = refusal("[flow_logs]\nformat = \"${srcaddr} ${nonsense}\"");
        assert!(format.contains("${nonsense}"), "{format}");
        let filter = refusal("[flow_logs]\nfilter = \"dstport https\"");
        assert!(filter.contains("test:2") && filter.contains("https"), "{filter}");
        let kind = refusal("[[flow_logs.destination]]\nkind = \"kafka\"");
        assert!(kind.contains("\"file\" or \"stdout\""), "{kind}");
        let key = refusal("[[flow_logs.destination]]\nkind = \"stdout\"\npath = \"x\"");
        assert!(key.contains("not for destinations of this kind"), "{key}");
        let file = "[[flow_logs.destination]]\nkind = \"file\"\npath = \"/tmp/x\"\n";
        let twice = refusal(&format!("{file}{file}"));
        assert!(twice.contains("test:5") && twice.contains("another destination"), "{twice}");
        assert_eq!(read(&format!("{file}{}", file.replace("/x", "/y"))).destinations.len(), 2);
        let path = refusal("[[flow_logs.destination]]\nkind = \"file\"");
        assert!(path.contains("path"), "{path}");
        let collector = refusal("[[flow_logs.destination]]\nkind = \"ipfix\"\ncollector = \"somewhere\"");
        assert!(collector.contains("192.0.2.10:4739"), "{collector}");
    }

    #[cfg(feature = "aws")]
    #[test]
    fn cloud_destinations_are_read() {
        let logs = read(
            "[[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"b\"\nprefix = \"/a/b/\"\nfile_format = \"parquet\"\n\
             hive = true\nhourly = true\nendpoint = \"http://127.0.0.1:5000\"\nspool_size = \"1m\"\n\
             [[flow_logs.destination]]\nkind = \"cloudwatch-logs\"\nlog_group = \"g\"\ncreate_log_group = true\n",
        );
        let [s3, cloudwatch] = logs.destinations.as_slice() else { panic!("two destinations") };
        let Kind::S3 { prefix, objects, cloud, .. } = &s3.kind else { panic!("{s3:?}") };
        assert_eq!((prefix.as_str(), objects.parquet, objects.hive, objects.hourly), ("a/b", true, true, true));
        assert_eq!((cloud.spool_bytes, cloud.endpoint.as_str()), (1 << 20, "http://127.0.0.1:5000"));
        assert!(matches!(&cloudwatch.kind, Kind::CloudWatch { create: true, .. }));
        let reserved = refusal("[[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"b\"\nprefix = \"AWSLogs\"");
        assert!(reserved.contains("AWSLogs"), "{reserved}");
    }
}
