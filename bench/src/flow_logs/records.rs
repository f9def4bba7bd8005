//! Reads all records of a run and holds each connection against them: one record for every interface and direction, with one
//! packet and its bytes, and nothing else.

use crate::lab::Family;
use crate::local::Size;
use anyhow::{Context, Result, bail, ensure};
use forwarder_ebpf::abi::{LOAD_FIRST_PORT, LOAD_PORT_BITS, LOAD_SERVER_PORT, LoadConfig};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;

/// What a record has: AWS's default, and what tells connections apart.
pub(super) const FORMAT: &str = "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} \
                                 ${protocol} ${packets} ${bytes} ${start} ${end} ${action} ${log-status} ${pkt-srcaddr} \
                                 ${pkt-dstaddr} ${flow-direction}";
/// Fields of it.
const FIELDS: usize = 17;

/// In by the clients' side, out by the servers', and back.
const PLACES: [(&str, &str); 4] = [("r0", "ingress"), ("r1", "egress"), ("r1", "ingress"), ("r0", "egress")];

/// The connections that there were.
pub(super) struct Expected<'a> {
    load: &'a LoadConfig,
    /// Bytes of the IP packet.
    bytes: String,
}

impl<'a> Expected<'a> {
    pub(super) fn new(load: &'a LoadConfig) -> Self {
        Self { load, bytes: (Size::Short.bytes(Family::V4) - 14).to_string() }
    }

    /// Reads all files in a directory. Returns how many records there are.
    ///
    /// # Errors
    /// When a record is missing, is there twice, or says something else than was.
    pub(super) fn read(&self, directory: &Path) -> Result<u64> {
        let mut seen = vec![[0_u8; PLACES.len()]; self.load.flows as usize];
        for file in fs::read_dir(directory)? {
            let path = file?.path();
            let mut lines = BufReader::with_capacity(1 << 20, File::open(&path)?);
            let mut line = String::new();
            while lines.read_line(&mut line)? > 0 {
                if let Some((flow, place)) = self.place(&line).with_context(|| line.trim_end().to_owned())? {
                    let count = &mut seen[flow][place];
                    *count = count.saturating_add(1);
                }
                line.clear();
            }
        }
        let all = || seen.iter().flatten();
        let (missing, double) = (all().filter(|count| **count == 0).count(), all().filter(|count| **count > 1).count());
        ensure!(missing + double == 0, "of {} records {missing} are missing and {double} double", all().count());
        Ok(seen.len() as u64 * PLACES.len() as u64)
    }

    /// The connection that a record is of, and which of its four. `None`: a silent interface's.
    fn place(&self, line: &str) -> Result<Option<(usize, usize)>> {
        let mut fields = [""; FIELDS];
        let mut words = line.trim_end_matches('\n').split(' ');
        fields.iter_mut().for_each(|field| *field = words.next().unwrap_or_default());
        let [_, _, interface, _, _, source_port, destination_port, protocol, packets, bytes, rest @ ..] = fields;
        let [_, _, action, status, source, destination, direction] = rest;
        ensure!(line.ends_with('\n') && words.next().is_none() && !direction.is_empty(), "is no whole record");
        if status == "NODATA" {
            return Ok(None);
        }
        let right = (protocol, packets, bytes, action, status) == ("17", "1", self.bytes.as_str(), "ACCEPT", "OK");
        ensure!(right, "is not of one packet of {} bytes that was forwarded", self.bytes);
        let place = PLACES.iter().position(|place| *place == (interface, direction)).context("is of no interface")?;
        let (client, server) = if place < 2 { (source, destination) } else { (destination, source) };
        let ports = if place < 2 { (source_port, destination_port) } else { (destination_port, source_port) };
        let flow = self.flow(server.parse()?, ports.0.parse()?)?;
        let own = if matches!(place, 0 | 3) { self.load.client(flow) } else { self.load.public };
        ensure!(client.parse() == Ok(Ipv4Addr::from(own)), "has another client than connection {flow}");
        ensure!(ports.1.parse() == Ok(LOAD_SERVER_PORT), "is not to port {LOAD_SERVER_PORT}");
        Ok(Some((flow as usize, place)))
    }

    fn flow(&self, server: Ipv4Addr, port: u16) -> Result<u32> {
        let first = u32::from(Ipv4Addr::from(self.load.servers));
        let number = u32::from(server).checked_sub(first).zip(port.checked_sub(LOAD_FIRST_PORT));
        match number {
            Some((server, port)) if (server << LOAD_PORT_BITS) + u32::from(port) < self.load.flows => {
                Ok((server << LOAD_PORT_BITS) + u32::from(port))
            }
            _ => bail!("is of no connection that there was"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_ebpf::abi::load_port;
    use std::fmt::Write as _;

    fn load() -> LoadConfig {
        let (clients, servers, public) = ([10, 64, 0, 0], [198, 18, 0, 1], [10, 2, 0, 1]);
        LoadConfig { flows: 70_000, clients, servers, public, ..LoadConfig::default() }
    }

    /// The records of all connections but `without`.
    fn records(load: &LoadConfig, without: Option<u32>) -> String {
        let mut text = "2 1 r0 - - - - - - - 1 2 - NODATA - - -\n".to_owned();
        for flow in (0..load.flows).filter(|flow| Some(*flow) != without) {
            for (place, (interface, direction)) in PLACES.into_iter().enumerate() {
                let own = if matches!(place, 0 | 3) { load.client(flow) } else { load.public };
                let (client, server) = (Ipv4Addr::from(own), Ipv4Addr::from(load.server(flow)));
                let (client, server) = ((client, load_port(flow)), (server, LOAD_SERVER_PORT));
                let ((source, from), (destination, to)) = if place < 2 { (client, server) } else { (server, client) };
                let _ = writeln!(
                    text,
                    "5 1 {interface} 1.1.1.1 1.1.1.1 {from} {to} 17 1 46 1 2 ACCEPT OK {source} {destination} {direction}"
                );
            }
        }
        text
    }

    fn read(text: &str) -> Result<u64> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("flow.log"), text).unwrap();
        Expected::new(&load()).read(directory.path())
    }

    #[test]
    fn nothing_but_every_connection_once_is_taken() {
        let whole = records(&load(), None);
        assert_eq!(read(&whole).unwrap(), 280_000);
        let last = whole.lines().last().unwrap();
        let wrong = [
            records(&load(), Some(40_000)),
            format!("{whole}{last}\n"),
            whole.replacen(" 17 1 46 ", " 17 2 92 ", 1),
            whole.replacen(" 17 1 46 ", " 17 1 47 ", 1),
            whole.replacen("NODATA", "SKIPDATA", 1),
            whole.replacen("ACCEPT", "REJECT", 1),
            whole.replacen(" r1 ", " r0 ", 1),
            whole.replacen(" 10.2.0.1 ", " 10.2.0.2 ", 1),
            whole.trim_end().to_owned(),
        ];
        for text in wrong {
            assert!(read(&text).is_err());
        }
    }
}
