//! Flow logs read by programs that we did not write: `flowlogs-reader` reads the file, CloudWatch Logs and S3 (both played
//! by `moto_server` on the appliance's loopback), `pyarrow` the Parquet, `tshark` the IPFIX. All of them count what the ends
//! counted.

mod flowlogs_cloud {
    mod change;
}

use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, Running, run, wait_until};
use forwarder_kit::{Appliance, Topology, serve};
use forwarder_tests::{Lab, SMALL_TABLE};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const QUESTIONS: u64 = 200;
/// UDP over IPv4.
const PACKET: u64 = 100 + 8 + 20;

/// Where the packages are that `cargo xtask setup` installs.
fn python() -> Result<PathBuf> {
    let python = xtask::toolchain::python_directory()?.join("bin/python");
    ensure!(python.exists(), "{} is missing: run `cargo xtask setup`", python.display());
    Ok(python)
}

/// Sums over UDP records of what leaves by the outside interface: packets, bytes, and statuses other than OK and NODATA.
const SUM: &str = r#"
import boto3, gzip, io, json, os, sys
from datetime import datetime, timedelta
from flowlogs_reader import FlowLogsReader, FlowRecord, S3FlowLogsReader
import pyarrow.parquet
aws = dict(region_name="eu-central-1", endpoint_url="http://127.0.0.1:5000", aws_access_key_id="x", aws_secret_access_key="x")
fields = ("version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action "
          "log-status pkt-srcaddr pkt-dstaddr flow-direction").split()
when = dict(start_time=datetime.utcnow() - timedelta(hours=1), end_time=datetime.utcnow() + timedelta(hours=1), raise_on_error=True)
def total(records):
    packets = octets = skipped = 0
    for record in records:
        skipped += record.log_status == "SKIPDATA"
        if record.protocol == 17 and record.dstaddr == "203.0.113.10" and record.dstport == 9000:
            packets, octets = packets + record.packets, octets + record.bytes
    return [packets, octets, skipped]
what, place = sys.argv[1], sys.argv[2]
if what == "make":
    boto3.client("s3", **aws).create_bucket(Bucket=place, CreateBucketConfiguration=dict(LocationConstraint="eu-central-1"))
    print("[]")
elif what == "file":
    lines = open(place).read().splitlines()
    print(json.dumps(total(FlowRecord.from_cwl_event(dict(message=line)) for line in lines)))
elif what == "cloudwatch":
    reader = FlowLogsReader(place, boto_client=boto3.client("logs", **aws), fields=fields, **when)
    print(json.dumps(total(reader)))
elif what == "s3":
    print(json.dumps(total(S3FlowLogsReader(place, boto_client=boto3.client("s3", **aws), **when))))
elif what == "parquet":
    s3, sums, names = boto3.client("s3", **aws), [0, 0, 0], []
    for item in s3.list_objects_v2(Bucket=place, Prefix="columns/AWSLogs/aws-account-id=123456789012/aws-service=vpcflowlogs/")["Contents"]:
        table = pyarrow.parquet.read_table(io.BytesIO(s3.get_object(Bucket=place, Key=item["Key"])["Body"].read()))
        names = [f"{field.name}:{field.type}" for field in table.schema]
        for row in table.to_pylist():
            sums[2] += row["log_status"] == "SKIPDATA"
            if row["protocol"] == 17 and row["dstaddr"] == "203.0.113.10" and row["dstport"] == 9000:
                sums[0], sums[1] = sums[0] + row["packets"], sums[1] + row["bytes"]
    print(json.dumps(sums + [names]))
elif what == "read":
    parts = []
    if place == "events":
        pages = boto3.client("logs", **aws).get_paginator("filter_log_events").paginate(logGroupName="flows")
        parts = [[None, [event["message"]]] for page in pages for event in page["events"]]
    else:
        s3 = boto3.client("s3", **aws)
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="logs", Prefix=place + "/")
        for body in [s3.get_object(Bucket="logs", Key=item["Key"])["Body"].read() for page in pages for item in page["Contents"]]:
            if place == "text":
                header, *lines = gzip.decompress(body).decode().splitlines()
            else:
                table = pyarrow.parquet.read_table(io.BytesIO(body))
                header = " ".join(table.column_names).replace("_", "-")
                lines = [" ".join("-" if cell is None else str(cell) for cell in row.values()) for row in table.to_pylist()]
            parts.append([header, lines])
    print(json.dumps(parts))
# All is said. pyarrow takes down its threads in a race that aborts now and then.
sys.stdout.flush()
os._exit(0)
"#;

fn moto(lab: &Lab) -> Result<Running> {
    let server = python()?.with_file_name("moto_server");
    let mut moto = Running::start(lab.net.appliance.command(&server.display().to_string()).args([
        "-H",
        "127.0.0.1",
        "-p",
        "5000",
    ]))?;
    wait_until("moto to listen", PATIENCE, || {
        ensure!(moto.is_running(), "moto_server has ended");
        Ok(lab.net.appliance.run("ss", "-Hlnt sport = 5000")?.contains("5000"))
    })?;
    Ok(moto)
}

fn sums(lab: &Lab, what: &str, place: &str) -> Result<Value> {
    let said = run(lab
        .net
        .appliance
        .command(&python()?.display().to_string())
        .args(["-W", "ignore", "-c", SUM, what, place]))?;
    serde_json::from_str(&said).with_context(|| format!("{what}: {said}"))
}

const CUSTOM: &str = "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} ${protocol} \
                      ${packets} ${bytes} ${start} ${end} ${action} ${log-status} ${pkt-srcaddr} ${pkt-dstaddr} \
                      ${flow-direction}";

/// A file, a log group and objects of text; `cloud` is what more destinations of the kind need.
fn config(directory: &Path, spool_size: &str) -> (String, String) {
    let cloud = format!(
        "endpoint = \"http://127.0.0.1:5000\"\nregion = \"eu-central-1\"\nspool = \"{}\"\nspool_size = \"{spool_size}\"\n",
        directory.join("spool").display()
    );
    let config = format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\n\
         [[flow_logs.destination]]\nkind = \"file\"\npath = \"{file}\"\n\
         [[flow_logs.destination]]\nkind = \"cloudwatch-logs\"\nlog_group = \"flows\"\ncreate_log_group = true\n\
         format = \"{CUSTOM}\"\n{cloud}\
         [[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"logs\"\nprefix = \"text\"\nevery = \"1s\"\nformat = \"{CUSTOM}\"\n{cloud}",
        file = directory.join("flow.log").display()
    );
    (config, cloud)
}

/// Columns and IPFIX.
fn more(cloud: &str) -> String {
    format!(
        "[[flow_logs.destination]]\nkind = \"s3\"\nbucket = \"logs\"\nprefix = \"columns\"\nevery = \"1s\"\nhive = true\n\
         hourly = true\nfile_format = \"parquet\"\nfilter = \"accept\"\n{cloud}\
         [[flow_logs.destination]]\nkind = \"ipfix\"\ncollector = \"127.0.0.1:4739\"\n"
    )
}

/// An appliance with these destinations.
fn lab(config: &str) -> Result<Lab> {
    let net = Topology::two_armed()?;
    let mut appliance = Appliance::prepare(&net.appliance, &format!("{}{config}", net.config()))?;
    // Where every tool of AWS looks for them; moto takes any.
    appliance.set_environment(&[("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")]);
    appliance.start_again()?;
    Ok(Lab { appliance, net })
}

/// The three numbers of `sums`.
fn numbers(lab: &Lab, what: &str, place: &str) -> Result<[u64; 3]> {
    let found = sums(lab, what, place)?;
    let number = |at: usize| found[at].as_u64().with_context(|| format!("{what}: {found}"));
    Ok([number(0)?, number(1)?, number(2)?])
}

/// Bytes in each spool.
fn waiting(spools: &Path) -> Result<Vec<u64>> {
    let files = |spool: PathBuf| -> Result<u64> {
        // One that goes meanwhile has arrived.
        std::fs::read_dir(spool)?.map(|file| Ok(file?.metadata().map_or(0, |file| file.len()))).sum()
    };
    std::fs::read_dir(spools)?.map(|spool| files(spool?.path())).collect()
}

/// One at a time, each answered.
fn ask_and_answer(lab: &Lab) -> Result<()> {
    lab.client().enter(|| {
        let socket = UdpSocket::bind((lab.net.client_v4(0), 0))?;
        socket.connect(SocketAddr::new(lab.net.server_v4().into(), 9000))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 200];
        for number in 0..QUESTIONS {
            socket.send(&[number as u8; 100])?;
            socket.recv(&mut buffer).with_context(|| format!("question {number} was not answered"))?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
}

#[test]
fn programs_that_we_did_not_write_read_every_destination() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Started without the service: what is logged before it is there waits for it.
    let (config, cloud) = config(directory.path(), "64m");
    let mut lab = lab(&format!("{config}{}", more(&cloud)))?;
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    let collector = Collector::start(&lab, directory.path())?;
    ask_and_answer(&lab)?;
    let mut moto = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    ask_and_answer(&lab)?;
    ensure!(server.requests() == 2 * QUESTIONS, "the server saw {}", server.requests());
    lab.appliance.stop()?;
    let log = lab.appliance.log();
    // Out by the outside interface, and in by the inside one whose own address stands in the place of the server's.
    let expected = [2 * QUESTIONS, 2 * QUESTIONS * PACKET, 0];
    let file = directory.path().join("flow.log").display().to_string();
    for (what, place) in [("file", file.as_str()), ("cloudwatch", "flows"), ("s3", "logs/text"), ("parquet", "logs")] {
        let found = sums(&lab, what, place)?;
        let numbers: Vec<u64> = (0..3).filter_map(|at| found[at].as_u64()).collect();
        ensure!(numbers == expected, "{what}: {numbers:?} instead of {expected:?}\n{log}");
        if what == "parquet" {
            let names = found[3].to_string();
            let columns = ["version:int32", "interface_id:string", "srcport:int32", "bytes:int64", "start:int64"];
            ensure!(columns.iter().all(|column| names.contains(column)), "{names}");
        }
    }
    collector.check()?;
    ensure!(moto.is_running(), "moto_server has ended");
    Ok(())
}

/// What was sent while the service was gone arrives when it is back, and nothing arrives twice. moto remembers nothing over its
/// death, so what it had is read before.
#[test]
fn a_service_that_is_killed_gets_everything_when_it_is_back() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut lab = lab(&config(directory.path(), "64m").0)?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    let places = [("cloudwatch", "flows"), ("s3", "logs/text")];
    let first = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    ask_and_answer(&lab)?;
    for (what, place) in places {
        wait_until(&format!("{what} to have everything"), PATIENCE, || {
            Ok(numbers(&lab, what, place)? == [QUESTIONS, QUESTIONS * PACKET, 0])
        })?;
    }
    drop(first);
    ask_and_answer(&lab)?;
    wait_until("the appliance to notice", PATIENCE, || {
        Ok(lab.appliance.log().matches("does not take records").count() >= places.len())
    })?;
    ask_and_answer(&lab)?;
    let mut second = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    ask_and_answer(&lab)?;
    lab.appliance.stop()?;
    let log = lab.appliance.log();
    for (what, place) in places {
        let (found, expected) = (numbers(&lab, what, place)?, [3 * QUESTIONS, 3 * QUESTIONS * PACKET, 0]);
        ensure!(found == expected, "{what}: {found:?} instead of {expected:?}\n{log}");
    }
    let file = numbers(&lab, "file", &directory.path().join("flow.log").display().to_string())?;
    ensure!(file == [4 * QUESTIONS, 4 * QUESTIONS * PACKET, 0], "the file has {file:?}");
    ensure!(second.is_running() && !log.contains("loses records"), "{log}");
    Ok(())
}

/// An appliance with one destination of AWS, whose service has taken a request and says nothing. What there is to send has the
/// answers to all questions; nobody listens any more.
fn with_silent_service(directory: &Path, destination: &str) -> Result<(Lab, TcpStream)> {
    let cloud = config(directory, "64m").1;
    let lab = lab(&format!(
        "{SMALL_TABLE}[flow_logs]\ninterval = \"1s\"\naccount_id = \"123456789012\"\n\
         [[flow_logs.destination]]\n{destination}\nformat = \"{CUSTOM}\"\n{cloud}"
    ))?;
    let _server = serve::udp_echo(&lab.net.server, &[9000])?;
    let silent = lab.net.appliance.enter(|| TcpListener::bind("127.0.0.1:5000").context("cannot listen"))?;
    ask_and_answer(&lab)?;
    Ok((lab, silent.accept()?.0))
}

/// A service that takes a request and never answers is asked again, on another connection.
#[test]
fn a_service_that_falls_silent_is_asked_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let destination = "kind = \"cloudwatch-logs\"\nlog_group = \"flows\"\ncreate_log_group = true";
    let (mut lab, _asked) = with_silent_service(directory.path(), destination)?;
    let _moto = moto(&lab)?;
    wait_until("the service to have everything", Duration::from_secs(120), || {
        // There is no such log group before.
        Ok(numbers(&lab, "cloudwatch", "flows").is_ok_and(|found| found == [QUESTIONS, QUESTIONS * PACKET, 0]))
    })
    .with_context(|| format!("{:?}\n{}", numbers(&lab, "cloudwatch", "flows"), lab.appliance.log()))?;
    lab.appliance.stop()
}

/// Who stops does not wait for the answer. What the service has not taken stays in the spool.
#[test]
fn an_end_does_not_wait_for_a_silent_service() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let destination = "kind = \"s3\"\nbucket = \"logs\"\nevery = \"1s\"";
    let (mut lab, _asked) = with_silent_service(directory.path(), destination)?;
    // An object may take five minutes; `stop` has less patience.
    lab.appliance.stop()?;
    let _moto = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    lab.appliance.start_again()?;
    wait_until("the service to have everything", PATIENCE, || {
        Ok(numbers(&lab, "s3", "logs").is_ok_and(|found| found == [QUESTIONS, QUESTIONS * PACKET, 0]))
    })?;
    lab.appliance.stop()
}

/// When more waits than may, what is lost is declared where it is missing, and nowhere else; what is there is there once.
#[test]
fn a_full_spool_declares_what_it_loses() -> Result<()> {
    const FLOWS: u16 = 1000;
    let directory = tempfile::tempdir()?;
    let mut lab = lab(&config(directory.path(), "64k").0)?;
    let server = serve::udp_echo(&lab.net.server, &[9000])?;
    // Over more than one window, and several times what has room.
    for ports in (20_000..20_000 + FLOWS).collect::<Vec<_>>().chunks(250) {
        lab.client().enter(|| {
            for port in ports {
                let socket = UdpSocket::bind((lab.net.client_v4(0), *port))?;
                socket.send_to(&[0; 100], (lab.net.server_v4(), 9000))?;
            }
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(700));
    }
    wait_until("both to have no room", PATIENCE, || Ok(lab.appliance.log().matches("loses records").count() >= 2))?;
    let _moto = moto(&lab)?;
    sums(&lab, "make", "logs")?;
    wait_until("both to have room again", 3 * PATIENCE, || {
        Ok(waiting(&directory.path().join("spool"))?.into_iter().all(|bytes| bytes < 16 << 10))
    })?;
    ask_and_answer(&lab)?;
    let served = server.requests();
    lab.appliance.stop()?;
    let log = lab.appliance.log();
    let file = numbers(&lab, "file", &directory.path().join("flow.log").display().to_string())?;
    ensure!(file == [served, served * PACKET, 0], "{served} came through, and the file has {file:?}");
    for (what, place) in [("cloudwatch", "flows"), ("s3", "logs/text")] {
        let [packets, bytes, skipped] = numbers(&lab, what, place)?;
        ensure!(packets < served && skipped >= 2, "{what}: {packets} of {served}, {skipped} losses declared\n{log}");
        ensure!(packets >= QUESTIONS && bytes == packets * PACKET, "{what}: {packets} packets, {bytes} bytes\n{log}");
    }
    Ok(())
}

/// `tshark` beside a collector that only listens.
struct Collector {
    capture: Running,
    file: PathBuf,
    _socket: UdpSocket,
}

impl Collector {
    fn start(lab: &Lab, directory: &Path) -> Result<Self> {
        let socket = lab.net.appliance.enter(|| UdpSocket::bind("127.0.0.1:4739").context("cannot listen"))?;
        let file = directory.join("ipfix.pcap");
        let arguments = format!("-i lo -U -w {} udp port 4739", file.display());
        let capture = lab.net.appliance.spawn("tcpdump", &arguments)?;
        wait_until("tcpdump to begin", PATIENCE, || Ok(file.exists()))?;
        Ok(Self { capture, file, _socket: socket })
    }

    /// The sums that tshark decodes, and that it finds nothing wrong.
    fn check(self) -> Result<()> {
        let tshark = || {
            let mut command = Command::new("tshark");
            run(command.arg("-r").arg(&self.file).args(["-d", "udp.port==4739,cflow", "-V", "-Y", "cflow"]))
        };
        let sum = |said: &str, name: &str| -> u64 {
            // Indented less than the lines in it, some of which begin with the same word.
            let lines = said.split("\n        Flow ").filter(|flow| flow.contains("DstPort: 9000"));
            let value = |line: &str| line.trim().strip_prefix(name)?.trim().split(' ').next()?.parse::<u64>().ok();
            lines.flat_map(|flow| flow.lines()).filter_map(value).sum()
        };
        let sums = |said: &str| (sum(said, "Packets:"), sum(said, "Octets:"));
        let all = (2 * QUESTIONS, 2 * QUESTIONS * PACKET);
        // What tcpdump has not written yet is torn, or missing at the end.
        let written = wait_until("tcpdump to have written everything", PATIENCE, || Ok(sums(&tshark()?) == all));
        drop(self.capture);
        let said = tshark()?;
        ensure!(written.is_ok() && sums(&said) == all, "{:?} in\n{said}", sums(&said));
        ensure!(said.contains("Post NAT Source IPv4 Address: 198.51.100.10"), "{said}");
        ensure!(!said.contains("Malformed") && !said.contains("No template found"), "{said}");
        Ok(())
    }
}
