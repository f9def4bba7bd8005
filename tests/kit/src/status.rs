//! What the binary prints as JSON. The only place in the tests that knows its field names.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// `forwarder status --json`.
#[derive(Clone, Debug)]
pub struct Status {
    /// As printed.
    pub json: Value,
}

/// Exact counters of one interface since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the datapath saw come in.
    pub packets_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Packets that it sent out.
    pub packets_out: u64,
    /// Bytes of them.
    pub bytes_out: u64,
}

impl Status {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Ok(Self { json: serde_json::from_str(text).with_context(|| format!("status is not JSON: {text}"))? })
    }

    /// Counters of one interface.
    ///
    /// # Errors
    /// When it is not listed, or a field is missing: the field.
    pub fn interface(&self, name: &str) -> Result<Counts> {
        let entry = self.interface_entry(name)?;
        let count = |path: &str| number(entry, path);
        Ok(Counts {
            packets_in: count("/in/packets")?,
            bytes_in: count("/in/bytes")?,
            packets_out: count("/out/packets")?,
            bytes_out: count("/out/bytes")?,
        })
    }

    /// How XDP is attached to an interface: `native` or `generic`.
    ///
    /// # Errors
    /// When the interface or the field is missing.
    pub fn mode(&self, name: &str) -> Result<&str> {
        let entry = self.interface_entry(name)?;
        entry.pointer("/mode").and_then(Value::as_str).with_context(|| format!("no /mode in {entry}"))
    }

    /// Whether an interface is listed as being served.
    pub fn has_interface(&self, name: &str) -> bool {
        self.interface_entry(name).is_ok()
    }

    /// Drops by reason, those that happened.
    ///
    /// # Errors
    /// When the field is missing.
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        self.reasons("/drops")
    }

    /// Flows in the table.
    ///
    /// # Errors
    /// When the field is missing.
    pub fn flows(&self) -> Result<u64> {
        number(&self.json, "/flows/total")
    }

    /// Room for connections that is taken in both flow tables, also by those on their way out.
    ///
    /// # Errors
    /// When a field is missing.
    pub fn room_taken(&self) -> Result<u64> {
        Ok(number(&self.json, "/flows/ipv4_taken")? + number(&self.json, "/flows/ipv6_taken")?)
    }

    /// Passes of the sweeper that limits go by.
    ///
    /// # Errors
    /// When the field is missing.
    pub fn sweeps(&self) -> Result<u64> {
        number(&self.json, "/flows/sweeps")
    }

    fn reasons(&self, path: &str) -> Result<BTreeMap<String, u64>> {
        let object = self.json.pointer(path).with_context(|| format!("no {path} in {}", self.json))?;
        let entries = object.as_object().with_context(|| format!("{path} is no object"))?;
        let count = |value: &Value| value.as_u64().or_else(|| value.pointer("/packets")?.as_u64());
        let counted = entries.iter().filter_map(|(name, value)| Some((name.clone(), count(value)?)));
        Ok(counted.filter(|(_, packets)| *packets > 0).collect())
    }

    fn interface_entry(&self, name: &str) -> Result<&Value> {
        let list =
            self.json.pointer("/interfaces").and_then(Value::as_array).context("no /interfaces in the status")?;
        let found = list.iter().find(|entry| entry.pointer("/name").and_then(Value::as_str) == Some(name));
        found.with_context(|| format!("interface {name} is not in {list:?}"))
    }
}

/// One entry of `forwarder flows list --json`: a connection, as its originator sent it and as it left.
#[derive(Clone, Debug)]
pub struct Flow {
    /// As printed.
    pub json: Value,
    /// IP protocol number.
    pub protocol: u8,
    /// The originator, before translation.
    pub source: SocketAddr,
    /// Whom it wanted to reach.
    pub destination: SocketAddr,
    /// The originator as the destination sees it.
    pub translated_source: SocketAddr,
    /// State in words.
    pub state: String,
    /// Packets and bytes from the originator.
    pub sent: (u64, u64),
    /// Packets and bytes to the originator.
    pub received: (u64, u64),
    /// Round trips to the originator and to the responder, microseconds, where they are known.
    pub round_trips_us: [Option<u64>; 2],
}

impl Flow {
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>> {
        let json: Value = serde_json::from_str(text).with_context(|| format!("flow list is not JSON: {text}"))?;
        let list = json.as_array().or_else(|| json.pointer("/flows")?.as_array());
        list.with_context(|| format!("no list of flows in {json}"))?.iter().map(Self::parse).collect()
    }

    fn parse(json: &Value) -> Result<Self> {
        let word =
            |path: &str| json.pointer(path).and_then(Value::as_str).with_context(|| format!("no {path} in {json}"));
        Ok(Self {
            protocol: protocol_number(json)?,
            source: end(word("/original/source")?)?,
            destination: end(word("/original/destination")?)?,
            translated_source: end(word("/translated/source")?)?,
            state: word("/state")?.to_owned(),
            sent: (number(json, "/originator/packets")?, number(json, "/originator/bytes")?),
            received: (number(json, "/responder/packets")?, number(json, "/responder/bytes")?),
            round_trips_us: ["/rtt_originator_us", "/rtt_responder_us"].map(|path| json.pointer(path)?.as_u64()),
            json: json.clone(),
        })
    }
}

fn protocol_number(json: &Value) -> Result<u8> {
    let value = json.pointer("/protocol").with_context(|| format!("no /protocol in {json}"))?;
    let named = value.as_str().and_then(|name| match name.to_ascii_lowercase().as_str() {
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmp" => Some(1),
        "icmpv6" => Some(58),
        number => number.parse().ok(),
    });
    named.or_else(|| u8::try_from(value.as_u64()?).ok()).with_context(|| format!("unknown protocol {value}"))
}

/// An address with or without port.
fn end(text: &str) -> Result<SocketAddr> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 0)))
        .with_context(|| format!("`{text}` is not an address"))
}

fn number(json: &Value, path: &str) -> Result<u64> {
    json.pointer(path).and_then(Value::as_u64).with_context(|| format!("no number {path} in {json}"))
}
