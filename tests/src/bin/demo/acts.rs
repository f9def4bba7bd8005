//! The acts of the demo. Each drives real programs, prints what they and the forwarder say, and checks it.

use crate::report::Report;
use anyhow::{Context, Result, ensure};
use forwarder_kit::run::{PATIENCE, output, wait_until};
use forwarder_kit::serve;
use forwarder_kit::topology::Shape;
use forwarder_tests::{EchoConnection, Family, Lab};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The network as it was built.
pub fn drawing(shape: Shape) -> String {
    let drawing = match shape {
        Shape::TwoArmed => {
            "
client0  10.0.1.10 --+
client1  10.0.2.10 --+-- appliance (198.51.100.10) -- internet router -- server 203.0.113.10
client2  10.0.3.10 --+   forwarder runs here          198.51.100.1              2001:db8:3::10
         2001:db8:1:n::10"
        }
        Shape::OneArmed => {
            "
client0  10.0.1.10 --+
client1  10.0.2.10 --+-- VPC router -- server 203.0.113.10
client2  10.0.3.10 --+       |                2001:db8:3::10
         2001:db8:1:n::10    +------- appliance 198.51.100.10, one interface; forwarder runs here"
        }
    };
    drawing.trim_start_matches('\n').to_owned()
}

/// ping, curl, dig, traceroute, over IPv4 and IPv6.
pub fn reach(report: &mut Report, lab: &Lab) -> Result<()> {
    report.title("Clients reach servers, the servers see one public address");
    let web = serve::http(&lab.net.server, 80)?;
    let _dns = serve::dns(&lab.net.server)?;
    for family in Family::BOTH {
        report.check(&format!("client0: ping {}", lab.server(family)), ping(lab, family));
    }
    for (n, client) in lab.net.clients.iter().enumerate() {
        let what = format!("client{n}: curl http://203.0.113.10/ 20 MB");
        report.check(&what, fetch(client, "http://203.0.113.10/20000000"));
    }
    report
        .check("client0: curl http://[2001:db8:3::10]/ 20 MB", fetch(lab.client(), "http://[2001:db8:3::10]/20000000"));
    let seen = web.addresses();
    let expected = BTreeSet::from(Family::BOTH.map(|family| lab.seen(family)));
    let names = seen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let only = if seen == expected { Ok(names) } else { Err(anyhow::anyhow!("it saw {names}")) };
    report.check("the web server saw only", only);
    for over in ["+notcp", "+tcp"] {
        let answer = lab.client().run("dig", &format!("@203.0.113.10 example.com A {over} +short +time=2"));
        report.check(&format!("client0: dig @203.0.113.10 {over}"), answer.map(|said| said.trim().to_owned()));
    }
    let said = lab.client().run("traceroute", "-n -q 1 -w 1 203.0.113.10")?;
    let appliance = if lab.net.options.shape == Shape::TwoArmed { " 10.0.1.1 " } else { " 198.51.100.10 " };
    let shown =
        if said.contains(appliance) { Ok(format!("as{appliance}")) } else { Err(anyhow::anyhow!("it does not")) };
    report.check("client0: traceroute shows the appliance", shown.map(|said| said.trim_end().to_owned()));
    report.text(&said);
    Ok(())
}

fn ping(lab: &Lab, family: Family) -> Result<String> {
    let server = lab.server(family);
    // The first ones may wait for the neighbours' addresses.
    lab.client().run("ping", &format!("-c 2 -i 0.2 -W 2 -q {server}"))?;
    let said = lab.client().run("ping", &format!("-c 100 -i 0.002 -W 1 -q {server}"))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    let times = said.lines().find_map(|line| line.split_once("min/avg/max/mdev = ")).map_or("", |(_, times)| times);
    Ok(format!("100 of 100 answered, min/avg/max/mdev {times}"))
}

fn fetch(from: &forwarder_kit::Netns, url: &str) -> Result<String> {
    let said = from.run("curl", &format!("-gsS -m 10 -o /dev/null -w %{{size_download}}_%{{time_total}} {url}"))?;
    let (bytes, seconds) = said.split_once('_').context("curl printed no figures")?;
    let (bytes, seconds): (f64, f64) = (bytes.parse()?, seconds.parse()?);
    ensure!(bytes >= 20e6, "only {bytes} bytes came");
    Ok(format!("{:.0} MB in {:.2} s", bytes / 1e6, seconds))
}

/// iperf3 in both directions, and `forwarder status` while small packets rush through.
pub fn throughput(report: &mut Report, lab: &Lab) -> Result<()> {
    report.title("Load: iperf3 from the clients");
    let _server = lab.net.server.spawn("iperf3", "-s")?;
    wait_until("iperf3 -s to listen", PATIENCE, || {
        Ok(lab.net.server.run("ss", "-Hlnt sport = 5201")?.contains("5201"))
    })?;
    for (what, how) in [
        ("TCP, 4 streams up", "-t 2 -P 4"),
        ("TCP, 4 streams down", "-t 2 -P 4 -R"),
        ("UDP, 100 Mbit/s", "-t 2 -u -b 100M -l 1200"),
    ] {
        report.check(&format!("client0: iperf3 {what}"), iperf3(lab, how));
    }
    let rush = lab.client().spawn("iperf3", "-c 203.0.113.10 -J -t 4 -u -b 0 -l 64")?;
    std::thread::sleep(Duration::from_millis(2500));
    report.title("forwarder status, while a client sends 64-byte datagrams as fast as it can");
    report.text(&lab.appliance.ask(&["status"])?);
    // It only has to make packets; how many of them the receiving program misses is not the question here.
    drop(rush);
    Ok(())
}

fn iperf3(lab: &Lab, how: &str) -> Result<String> {
    let said = lab.client().run("iperf3", &format!("-c 203.0.113.10 -J --connect-timeout 3000 {how}"))?;
    let json: Value = serde_json::from_str(&said).context("iperf3 printed no JSON")?;
    let sum = json.pointer("/end/sum_received").or_else(|| json.pointer("/end/sum")).context("no sum")?;
    let bits = sum.pointer("/bits_per_second").and_then(Value::as_f64).context("no bit rate")?;
    ensure!(bits > 1e6, "only {bits:.0} bit/s");
    let lost = json.pointer("/end/sum/lost_packets").and_then(Value::as_i64);
    let lost = lost.map(|lost| format!(", {lost} lost")).unwrap_or_default();
    Ok(format!("{:.2} Gbit/s{lost}", bits / 1e9))
}

/// Packets that must not pass, so that there are drops to be shown.
pub fn misbehave(report: &mut Report, lab: &Lab) -> Result<()> {
    report.title("What must not pass");
    let inner = lab.net.client_v6(0).to_string();
    let knock = lab.net.server.command("ping").args(["-c", "3", "-i", "0.1", "-W", "1", "-q", &inner]).output()?;
    let kept = if knock.status.success() { Err(anyhow::anyhow!("it got in")) } else { Ok("silence".to_owned()) };
    report.check("server: ping a client from outside", kept);
    let mut big = lab.client().command("ping");
    let said = output(big.args(["-c", "1", "-W", "1", "-t", "1", "203.0.113.10"]))?;
    let said = String::from_utf8_lossy(&said.stdout).to_lowercase();
    let told =
        if said.contains("exceeded") { Ok("time exceeded, as it should") } else { Err(anyhow::anyhow!("{said}")) };
    report.check("client0: ping with a TTL of 1", told.map(str::to_owned));
    let drops = lab.appliance.status()?.drops()?;
    let list = drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ");
    let named = if drops.is_empty() { Err(anyhow::anyhow!("no drop was counted")) } else { Ok(list) };
    report.check("every drop has a name", named);
    Ok(())
}

/// Who talked to whom as what.
pub fn flows(report: &mut Report, lab: &Lab) -> Result<()> {
    report.title("Who talked to whom as what (forwarder flows list)");
    let mut flows = lab.appliance.flows()?;
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.sent.0 + flow.received.0));
    println!("   {:<6} {:<24} {:<24} {:<24} {:>9} {:>9}  state", "", "client", "server", "as", "sent", "received");
    for flow in flows.iter().take(16) {
        let name = match flow.protocol {
            1 | 58 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => other.to_string(),
        };
        let ends = [flow.source, flow.destination, flow.translated_source].map(|end| end.to_string());
        println!(
            "   {name:<6} {:<24} {:<24} {:<24} {:>9} {:>9}  {}",
            ends[0], ends[1], ends[2], flow.sent.0, flow.received.0, flow.state
        );
    }
    if flows.len() > 16 {
        println!("   and {} more", flows.len() - 16);
    }
    let inside = |flow: &&forwarder_kit::status::Flow| flow.source.ip().to_string().starts_with("10.0.");
    let public = lab.seen(Family::V4);
    let wrong = flows.iter().filter(inside).filter(|flow| flow.translated_source.ip() != public).count();
    let all = flows.iter().filter(inside).count();
    let translated =
        if wrong == 0 && all > 0 { Ok(format!("{all} flows")) } else { Err(anyhow::anyhow!("{wrong} are not")) };
    report.check(&format!("all IPv4 flows leave as {public}"), translated);
    Ok(())
}

/// Counters at the end of the load.
pub fn status(report: &mut Report, lab: &Lab) -> Result<()> {
    report.title("forwarder status");
    report.text(&lab.appliance.ask(&["status"])?);
    Ok(())
}

/// The controller is killed in the middle of a connection, and comes back.
pub fn crash(report: &mut Report, lab: &mut Lab) -> Result<()> {
    report.title("kill -9 in mid-stream");
    let _echo = serve::tcp_echo(&lab.net.server, &[7], 2)?;
    let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(Family::V4), 7))?;
    stream.ping()?;
    lab.appliance.kill9()?;
    report.check("the connection goes on without controller", exchange(&mut stream));
    let begun = Instant::now();
    lab.appliance.start_again()?;
    let adopted =
        exchange(&mut stream).map(|said| format!("{said}, back after {:.2} s", begun.elapsed().as_secs_f64()));
    report.check("and after a new one has adopted it", adopted);
    Ok(())
}

fn exchange(stream: &mut EchoConnection) -> Result<String> {
    for _ in 0..200 {
        stream.ping()?;
    }
    Ok("200 of 200 exchanges".to_owned())
}

/// Leaves everything as it is until Enter is pressed.
pub fn hold(lab: &Lab) -> Result<()> {
    println!("\nLook around; in this directory's target/debug:");
    println!("   ./forwarder --instance {} status", lab.appliance.instance());
    for netns in lab.net.clients.iter().chain([&lab.net.appliance, &lab.net.world, &lab.net.server]) {
        println!("   ip netns exec {} bash", netns.name());
    }
    println!("Press Enter to end.");
    std::io::stdin().read_line(&mut String::new()).context("cannot read from the terminal")?;
    Ok(())
}

/// SIGTERM, and what is left: nothing.
pub fn leave(report: &mut Report, lab: &mut Lab) -> Result<()> {
    report.title("SIGTERM");
    report.check("it ends with exit code 0", lab.appliance.stop().map(|()| String::new()));
    let links = lab.net.appliance.ip("-d link show")?;
    let left = links.contains("xdp") || lab.appliance.pins().exists() || lab.appliance.state().exists();
    let nothing = if left { Err(anyhow::anyhow!("a program, pin or state is left")) } else { Ok("nothing".to_owned()) };
    report.check("left on the host", nothing);
    Ok(())
}
