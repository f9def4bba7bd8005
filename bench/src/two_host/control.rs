//! The control connection: one line of JSON there, one back.

use super::host::Host;
use anyhow::{Context, Result, bail};
use forwarder_ebpf::abi::{LoadArrived, LoadConfig};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Moves when the other side would misread us.
const VERSION: u32 = 1;
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the generator asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Expect this, and count from 0. The bytes of a `LoadConfig`.
    Configure { version: u32, config: Vec<u8> },
    /// What has arrived?
    Count,
}

/// What the reflector says.
#[derive(Debug, Serialize, Deserialize)]
enum Response {
    /// It is done.
    Done,
    /// Forward frames that arrived, those of them that were wrong, and the interface's allowance counters.
    Counted(Reflected),
    /// It could not be done.
    Failed(String),
}

/// What a reflector saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Reflected {
    /// Frames that arrived and were sent back.
    pub(super) packets: u64,
    /// Those of them that were not as they have to be.
    pub(super) wrong: u64,
    /// Those of them that came after one that was sent later.
    pub(super) late: u64,
    /// Allowance counters of ENA.
    pub(super) allowances: BTreeMap<String, u64>,
}

/// Reflects for one generator after another, or for one.
pub(super) fn serve(interface: &str, listen: SocketAddr, once: bool) -> Result<()> {
    let mut host = Host::reflector(interface)?;
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    eprintln!("two-host: reflecting what comes by {interface}, control on {listen}");
    for connection in listener.incoming() {
        let connection = connection.context("cannot accept the control connection")?;
        let served = answer_all(&mut host, connection)?;
        if once && served > 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers until the generator goes; returns how many requests there were.
fn answer_all(host: &mut Host, connection: TcpStream) -> Result<u64> {
    let mut lines = BufReader::new(connection.try_clone().context("cannot share the control connection")?);
    let (mut writer, mut served) = (connection, 0);
    while let Ok(Some(request)) = receive(&mut lines) {
        let response = answer(host, request).unwrap_or_else(|error| Response::Failed(format!("{error:#}")));
        if send(&mut writer, &response).is_err() {
            break;
        }
        served += 1;
    }
    Ok(served)
}

fn answer(host: &mut Host, request: Request) -> Result<Response> {
    match request {
        Request::Configure { version, config } => {
            if version != VERSION {
                bail!("this reflector knows version {VERSION}, the generator {version}: use the same build on both");
            }
            let config = LoadConfig::read_from_bytes(&config).ok();
            let config = config.context("the generator is of another build: its config has another size")?;
            host.load.configure(&LoadConfig { reflect: 1, ..config })?;
            Ok(Response::Done)
        }
        Request::Count => {
            let LoadArrived { packets, wrong, late, .. } = host.load.counts()?.arrived[0];
            Ok(Response::Counted(Reflected { packets, wrong, late, allowances: host.allowances() }))
        }
    }
}

/// The generator's end.
#[derive(Debug)]
pub(super) struct Control {
    lines: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Control {
    pub(super) fn connect(to: SocketAddr) -> Result<Self> {
        let writer = TcpStream::connect_timeout(&to, PATIENCE)
            .with_context(|| format!("cannot connect to {to}: run `forwarder-bench two-host reflect` there"))?;
        writer.set_read_timeout(Some(PATIENCE)).context("cannot limit the wait for the reflector")?;
        writer.set_nodelay(true).context("cannot have the reflector asked at once")?;
        let lines = BufReader::new(writer.try_clone().context("cannot share the control connection")?);
        Ok(Self { lines, writer })
    }

    pub(super) fn configure(&mut self, config: &LoadConfig) -> Result<()> {
        match self.ask(&Request::Configure { version: VERSION, config: config.as_bytes().to_vec() })? {
            Response::Done => Ok(()),
            other => bail!("the reflector says {other:?}"),
        }
    }

    pub(super) fn count(&mut self) -> Result<Reflected> {
        match self.ask(&Request::Count)? {
            Response::Counted(reflected) => Ok(reflected),
            other => bail!("the reflector says {other:?}"),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response> {
        send(&mut self.writer, request)?;
        receive(&mut self.lines)?.context("the reflector has gone")
    }
}

fn send(to: &mut TcpStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message).context("cannot make JSON of a message")?;
    line.push('\n');
    to.write_all(line.as_bytes()).context("cannot write to the control connection")
}

fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line).context("cannot read from the control connection")? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).with_context(|| format!("`{}` is no message", line.trim()))
}
