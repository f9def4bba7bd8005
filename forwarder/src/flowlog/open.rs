//! Destinations as the config has them become threads with sinks.

use super::destination::{Destination, Sink};
use super::file::RotatedFile;
use super::identity::Identity;
use super::ipfix::Ipfix;
use super::progress::Progress;
use super::text::{Stdout, Text};
use super::{Home, code};
use crate::config::{self, DestinationKind as Kind};
use std::io;
use std::sync::Arc;

/// A sink, and whether a crash has torn something off its end.
type Opened = (Box<dyn Sink>, bool);

/// What it takes to open a destination.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// What the config says.
    pub(super) config: &'a config::Destination,
    /// What it is called.
    pub(super) name: &'a str,
    /// Where the instance keeps things.
    pub(super) home: Home<'a>,
    /// Who we are to AWS.
    pub(super) identity: &'a Arc<Identity>,
}

impl Wanted<'_> {
    /// Whether a sink could be opened in a place that another one still has.
    pub(super) fn check(self) -> io::Result<()> {
        match &self.config.kind {
            Kind::File { path, .. } => std::fs::File::options().append(true).create(true).open(path).map(drop),
            #[cfg(feature = "aws")]
            Kind::S3 { cloud, .. } | Kind::CloudWatch { cloud, .. } => cloud::check(cloud, self),
            _ => Ok(()),
        }
    }

    /// Opens the destination. What was lost before is declared.
    pub(super) fn destination(self) -> io::Result<Destination> {
        let name = self.name;
        let progress = self.home.directory.join(format!("flow-logs-progress-{}", code(name)));
        let (progress, was_under_way) = Progress::open(&progress)?;
        let (sink, torn) = self.sink()?;
        let destination = Destination::start(name.to_owned(), self.config.filter.clone(), sink, progress)?;
        if was_under_way || torn {
            tracing::warn!("flow logs: records were on their way to {name} when the last controller ended");
            destination.lost(1);
        }
        Ok(destination)
    }

    /// Opens a sink alone.
    pub(super) fn sink(self) -> io::Result<Opened> {
        let format = self.config.format.clone();
        Ok(match &self.config.kind {
            Kind::File { path, rotation } => {
                let (file, torn) = RotatedFile::open(path, *rotation)?;
                (Box::new(Text::new(format, file)), torn)
            }
            Kind::Stdout => (Box::new(Text::new(format, Stdout)), false),
            Kind::Ipfix { collector } => (Box::new(Ipfix::open(*collector)?), false),
            #[cfg(feature = "aws")]
            Kind::S3 { .. } | Kind::CloudWatch { .. } => cloud::sink(self)?,
            #[cfg(not(feature = "aws"))]
            Kind::S3 { .. } | Kind::CloudWatch { .. } => {
                let _ = self.identity;
                return Err(io::Error::other("this binary was built without the feature `aws`"));
            }
        })
    }
}

#[cfg(feature = "aws")]
mod cloud {
    //! The same for services of AWS.

    use super::{Kind, Opened, Text, Wanted, code, io};
    use crate::config::{Cloud, Objects};
    use crate::flowlog::aws::Aws;
    use crate::flowlog::cloudwatch::{CloudWatch, CloudWatchSink};
    use crate::flowlog::s3::{S3, S3Lines};
    use crate::flowlog::spool::{Spool, Upload};
    use std::path::PathBuf;
    use std::time::Duration;

    /// For an object of up to 75 MB of text, compressed.
    const OBJECT_MAY_TAKE: Duration = Duration::from_secs(300);
    /// For a batch of events, 1 MiB.
    const EVENTS_MAY_TAKE: Duration = Duration::from_secs(30);

    pub(super) fn sink(wanted: Wanted<'_>) -> io::Result<Opened> {
        let Wanted { config, name, home, identity } = wanted;
        let format = config.format.clone();
        let spool = |cloud: &Cloud, upload: Box<dyn Upload>| {
            Spool::open(&directory(cloud, wanted), u64::from(cloud.spool_bytes), upload, name)
        };
        let aws = |cloud: &Cloud, patience| Aws::new(cloud.clone(), identity.clone(), patience);
        match &config.kind {
            Kind::S3 { bucket, prefix, objects, cloud } => {
                let mut objects: Objects = objects.clone();
                if objects.flow_log_id.is_empty() {
                    objects.flow_log_id = format!("fl-0{}", code(&format!("{} {name}", home.instance)));
                }
                let (bucket, prefix) = (bucket.clone(), prefix.clone());
                let (aws, lines) = (aws(cloud, OBJECT_MAY_TAKE)?, format.clone());
                let service = S3 { aws, bucket, prefix, objects: objects.clone(), format: lines, client: None };
                let (lines, torn) = S3Lines::open(spool(cloud, Box::new(service))?, objects, &format)?;
                Ok((Box::new(Text::new(format, lines)), torn))
            }
            Kind::CloudWatch { log_group, create, cloud } => {
                let (log_group, create) = (log_group.clone(), *create);
                let aws = aws(cloud, EVENTS_MAY_TAKE)?;
                let service = CloudWatch { aws, log_group, create, client: None };
                let (sink, torn) = CloudWatchSink::open(format, spool(cloud, Box::new(service))?)?;
                Ok((Box::new(sink), torn))
            }
            _ => Err(io::Error::other("not a service of AWS")),
        }
    }

    pub(super) fn check(cloud: &Cloud, wanted: Wanted<'_>) -> io::Result<()> {
        Aws::new(cloud.clone(), wanted.identity.clone(), OBJECT_MAY_TAKE)?;
        let directory = directory(cloud, wanted);
        std::fs::create_dir_all(&directory)?;
        tempfile_in(&directory)
    }

    /// That files can be made there.
    fn tempfile_in(directory: &std::path::Path) -> io::Result<()> {
        let probe = directory.join("probe");
        std::fs::write(&probe, [])?;
        std::fs::remove_file(probe)
    }

    /// Its own for every instance and destination.
    fn directory(cloud: &Cloud, wanted: Wanted<'_>) -> PathBuf {
        cloud.spool.join(format!("{}-{}", wanted.home.instance, code(wanted.name)))
    }
}
