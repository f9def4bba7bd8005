//! What both services of AWS need: credentials from where AWS's own tools take them, a region, perhaps another endpoint, and
//! a runtime of the uploading thread's own.

use super::identity::Identity;
use super::spool::{Ends, Failed};
use crate::config::Cloud;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// How often it is looked whether to go on waiting.
const LOOK: Duration = Duration::from_millis(100);

/// A connection to AWS, made when it is first needed: the instance's region may not be known before.
pub struct Aws {
    cloud: Cloud,
    identity: Arc<Identity>,
    runtime: Runtime,
    patience: Duration,
    ends: Ends,
    loaded: Option<SdkConfig>,
}

impl Aws {
    /// Not connected yet. `patience` is for one request and its answer: a service that takes a request and says nothing more
    /// is asked again after that, on another connection.
    ///
    /// # Errors
    /// When there is no runtime to be had.
    pub fn new(cloud: Cloud, identity: Arc<Identity>, patience: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { cloud, identity, runtime, patience, ends: Ends::default(), loaded: None })
    }

    /// Who and where we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Another endpoint than the service's own is meant.
    pub fn has_endpoint(&self) -> bool {
        !self.cloud.endpoint.is_empty()
    }

    /// Has waiting end when these do.
    pub fn watch(&mut self, ends: Ends) {
        self.ends = ends;
    }

    /// Waits for what a service does.
    ///
    /// # Errors
    /// When the end comes first.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Failed> {
        let end = async {
            while !self.ends.are_here() {
                tokio::time::sleep(LOOK).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                () = end => Err(Failed::Again("it has not answered, and there is no more time".to_owned())),
            }
        })
    }

    /// Settings for a client.
    ///
    /// # Errors
    /// When no region is known.
    pub fn settings(&mut self) -> Result<SdkConfig, Failed> {
        if let Some(settings) = &self.loaded {
            return Ok(settings.clone());
        }
        let named = Some(self.cloud.region.clone()).filter(|region| !region.is_empty());
        let region = named.or_else(|| self.identity.region());
        let client = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(self.patience).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(client).timeout_config(timeouts);
        // The spool tries again, and says so.
        loader = loader.retry_config(RetryConfig::disabled());
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        if self.has_endpoint() {
            loader = loader.endpoint_url(&self.cloud.endpoint);
        }
        let settings = self.runtime.block_on(loader.load());
        if settings.region().is_none() {
            return Err(Failed::Again("no region is known: set flow_logs.region".to_owned()));
        }
        self.loaded = Some(settings.clone());
        Ok(settings)
    }

    /// The region that settings have.
    pub fn region(&self) -> String {
        let region = self.loaded.as_ref().and_then(|settings| settings.region()).map(Region::as_ref);
        region.unwrap_or("unknown").to_owned()
    }
}

/// A failure in words; `never` are error codes that will not go away by waiting.
pub fn failed<E, R>(error: &SdkError<E, R>, never: &[&str]) -> Failed
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let words = DisplayErrorContext(error).to_string();
    let words = words.split(" (").next().unwrap_or_default();
    let said =
        error.code().map_or_else(|| words.to_owned(), |code| format!("{code}: {}", error.message().unwrap_or("")));
    if error.code().is_some_and(|code| never.contains(&code)) { Failed::Never(said) } else { Failed::Again(said) }
}
