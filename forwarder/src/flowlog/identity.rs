//! What records call the instance and its interfaces: from the instance metadata, else from the config, else not at all.
//!
//! The metadata service is asked in the background, with IMDSv2's token and short budgets, so that on a machine without one
//! nothing waits for it; again when an interface appears that it has not told of.

use crate::config::FlowLogs;
use crate::record::Interface;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Where the service is, unless `AWS_EC2_METADATA_SERVICE_ENDPOINT` says otherwise (AWS, "Instance metadata").
const ENDPOINT: &str = "http://169.254.169.254";
/// How long it may take for one answer: it is on this host, or not there at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an unknown interface waits until the service is asked again.
const AGAIN: Duration = Duration::from_secs(30);

type Mac = [u8; 6];

/// What the metadata says. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    account_id: String,
    instance_id: String,
    region: String,
    az_id: String,
    interfaces: BTreeMap<Mac, MetadataInterface>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MetadataInterface {
    interface_id: String,
    subnet_id: String,
    vpc_id: String,
    account_id: String,
}

/// Names things.
#[derive(Debug)]
pub struct Identity {
    config: Mutex<FlowLogs>,
    metadata: Mutex<Metadata>,
    version: AtomicU64,
}

impl Identity {
    /// With what the config says.
    pub fn new(config: FlowLogs) -> Self {
        Self { config: Mutex::new(config), metadata: Mutex::default(), version: AtomicU64::new(0) }
    }

    /// What the config says now.
    pub fn set(&self, config: FlowLogs) {
        *self.config.lock().expect("no thread panics while it holds the config") = config;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Moves when something has become known.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Fills in the ids of an interface that has its name and link-layer address.
    pub fn name(&self, interface: Interface) -> Interface {
        let metadata = self.metadata();
        let settings = self.config.lock().expect("no thread panics while it holds the config");
        let config = &settings.identity;
        let (nothing, none) = (MetadataInterface::default(), Default::default());
        let told = metadata.interfaces.get(&interface.mac).unwrap_or(&nothing);
        let own = settings.interfaces.get(&interface.name).unwrap_or(&none);
        let first = |choices: &[&String]| {
            choices.iter().find(|text| !text.is_empty()).map_or_else(String::new, |text| (*text).clone())
        };
        Interface {
            account_id: first(&[&told.account_id, &metadata.account_id, &own.account_id, &config.account_id]),
            interface_id: first(&[&told.interface_id, &own.interface_id, &interface.name]),
            vpc_id: first(&[&told.vpc_id, &own.vpc_id, &config.vpc_id]),
            subnet_id: first(&[&told.subnet_id, &own.subnet_id]),
            instance_id: first(&[&metadata.instance_id, &config.instance_id]),
            region: first(&[&metadata.region, &config.region]),
            az_id: first(&[&metadata.az_id, &config.az_id]),
            ..interface
        }
    }

    /// The account, `unknown` when it is not.
    pub fn account_id(&self) -> String {
        let named = self.name(Interface::default()).account_id;
        if named.is_empty() { "unknown".to_owned() } else { named }
    }

    /// The region, if it is known.
    pub fn region(&self) -> Option<String> {
        Some(self.name(Interface::default()).region).filter(|region| !region.is_empty())
    }

    /// Asks the metadata service, again while `unknown` says that something is missing; ends when there is no service.
    pub async fn learn(&self, unknown: impl Fn(&dyn Fn(&Mac) -> bool) -> bool) {
        if std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return;
        }
        let endpoint = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|_| ENDPOINT.to_owned());
        loop {
            match read(&endpoint).await {
                Ok(metadata) => self.note(metadata),
                Err(error) => {
                    tracing::info!("no instance metadata ({error}): flow logs use the ids in the config");
                    return;
                }
            }
            loop {
                tokio::time::sleep(AGAIN).await;
                let known = |mac: &Mac| self.metadata().interfaces.contains_key(mac);
                if unknown(&known) {
                    break;
                }
            }
        }
    }

    fn note(&self, metadata: Metadata) {
        let mut known = self.metadata();
        if *known != metadata {
            *known = metadata;
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    fn metadata(&self) -> MutexGuard<'_, Metadata> {
        self.metadata.lock().expect("no thread panics while it holds the metadata")
    }
}

/// Why there is no metadata, in a few words.
type Failure = String;

/// Everything that records name.
async fn read(endpoint: &str) -> Result<Metadata, Failure> {
    let service = Service::open(endpoint).await?;
    let document = service.text("dynamic/instance-identity/document").await?;
    let document: serde_json::Value = serde_json::from_str(&document).map_err(|error| error.to_string())?;
    let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let mut metadata = Metadata {
        account_id: word("accountId"),
        instance_id: word("instanceId"),
        region: word("region"),
        az_id: service.text("meta-data/placement/availability-zone-id").await.unwrap_or_default(),
        interfaces: BTreeMap::new(),
    };
    for line in service.text("meta-data/network/interfaces/macs/").await?.lines() {
        let Some(mac) = parse_mac(line.trim_end_matches('/')) else { continue };
        let of = |key: &str| format!("meta-data/network/interfaces/macs/{}/{key}", line.trim_end_matches('/'));
        let interface = MetadataInterface {
            interface_id: service.text(&of("interface-id")).await.unwrap_or_default(),
            subnet_id: service.text(&of("subnet-id")).await.unwrap_or_default(),
            vpc_id: service.text(&of("vpc-id")).await.unwrap_or_default(),
            account_id: service.text(&of("owner-id")).await.unwrap_or_default(),
        };
        metadata.interfaces.insert(mac, interface);
    }
    Ok(metadata)
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// The metadata service, with a token of its own.
struct Service<'a> {
    host: &'a str,
    token: String,
}

impl<'a> Service<'a> {
    async fn open(endpoint: &'a str) -> Result<Self, Failure> {
        let host = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
        let lifetime = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
        let token = ask(host, Method::PUT, "api/token", lifetime).await?;
        Ok(Self { host, token })
    }

    async fn text(&self, path: &str) -> Result<String, Failure> {
        ask(self.host, Method::GET, path, ("x-aws-ec2-metadata-token", &self.token)).await
    }
}

async fn ask(host: &str, method: Method, path: &str, header: (&str, &str)) -> Result<String, Failure> {
    let asked = async {
        // A host without a port: the service's own is 80.
        let stream = match host.rsplit_once(':') {
            Some(_) => TcpStream::connect(host).await,
            None => TcpStream::connect((host, 80)).await,
        };
        let stream = stream.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/latest/{path}"))
            .header(hyper::header::HOST, host)
            .header(header.0, header.1)
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()));
        }
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    };
    timeout(PATIENCE, asked).await.map_err(|_| format!("no answer from {host}"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use std::sync::Arc;

    const ANSWERS: [(&str, &str); 7] = [
        (
            "/latest/dynamic/instance-identity/document",
            r#"{"accountId": "123456789012", "instanceId": "i-1", "region": "eu-central-1"}"#,
        ),
        ("/latest/meta-data/placement/availability-zone-id", "euc1-az2"),
        ("/latest/meta-data/network/interfaces/macs/", "0e:00:00:00:00:01/\n"),
        ("/latest/meta-data/network/interfaces/macs/0e:00:00:00:00:01/interface-id", "eni-1"),
        ("/latest/meta-data/network/interfaces/macs/0e:00:00:00:00:01/subnet-id", "subnet-1"),
        ("/latest/meta-data/network/interfaces/macs/0e:00:00:00:00:01/vpc-id", "vpc-1"),
        ("/latest/meta-data/network/interfaces/macs/0e:00:00:00:00:01/owner-id", "210987654321"),
    ];

    /// Speaks IMDSv2: no token, no answer.
    async fn imds(method: Method, uri: Uri, headers: HeaderMap) -> (StatusCode, &'static str) {
        let has = |name: &str, value: &str| headers.get(name).is_some_and(|found| found == value);
        if method == Method::PUT
            && uri.path() == "/latest/api/token"
            && has("x-aws-ec2-metadata-token-ttl-seconds", "60")
        {
            return (StatusCode::OK, "secret");
        }
        let answer = ANSWERS.iter().find(|(path, _)| *path == uri.path()).map(|(_, answer)| *answer);
        match answer {
            _ if !has("x-aws-ec2-metadata-token", "secret") => (StatusCode::UNAUTHORIZED, ""),
            Some(answer) => (StatusCode::OK, answer),
            None => (StatusCode::NOT_FOUND, ""),
        }
    }

    #[tokio::test]
    async fn metadata_comes_before_the_config_and_the_config_before_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(imds)).await });
        let config = "[flow_logs]\naccount_id = \"999999999999\"\nvpc_id = \"vpc-9\"\n\
                      [[flow_logs.interface]]\nname = \"ens6\"\ninterface_id = \"eni-9\"\n";
        let identity = Identity::new(crate::config::parse(config, "test").expect("a config").flow_logs);
        let interface =
            |name: &str, last| Interface { name: name.to_owned(), mac: [14, 0, 0, 0, 0, last], ..Interface::default() };
        let before = identity.name(interface("ens5", 1));
        assert_eq!((before.interface_id.as_str(), before.account_id.as_str()), ("ens5", "999999999999"));
        identity.note(read(&format!("http://{address}")).await.expect("it answers"));
        assert_eq!(identity.version(), 1);
        let told = identity.name(interface("ens5", 1));
        assert_eq!(
            [
                &told.account_id,
                &told.interface_id,
                &told.subnet_id,
                &told.vpc_id,
                &told.instance_id,
                &told.region,
                &told.az_id
            ],
            ["210987654321", "eni-1", "subnet-1", "vpc-1", "i-1", "eu-central-1", "euc1-az2"]
        );
        let other = identity.name(interface("ens6", 2));
        assert_eq!(
            [&other.account_id, &other.interface_id, &other.subnet_id, &other.vpc_id],
            ["123456789012", "eni-9", "", "vpc-9"]
        );
        assert_eq!(
            (identity.account_id(), identity.region()),
            ("123456789012".to_owned(), Some("eu-central-1".to_owned()))
        );
    }

    #[tokio::test]
    async fn without_a_service_nothing_waits() {
        let begun = std::time::Instant::now();
        // Nothing listens at a port that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        assert!(read(&format!("http://{}", port.expect("a port"))).await.is_err());
        assert!(begun.elapsed() < 2 * PATIENCE);
        let identity = Arc::new(Identity::new(FlowLogs::default()));
        assert_eq!((identity.account_id(), identity.region()), ("unknown".to_owned(), None));
    }
}
