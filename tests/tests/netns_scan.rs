//! The same rules given to nftables and to the forwarder, the same probes, the same answers; what a port scan from outside
//! sees; and what real programs do behind a default of deny.

use anyhow::{Context, Result, bail, ensure};
use forwarder_kit::topology::{Options, Topology};
use forwarder_kit::{Appliance, Netns, serve};
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Untranslated, so that both firewalls see and let see the same.
const NO_NAT: &str = "[[nat.exempt]]\nto = [\"0.0.0.0/0\"]\n";

const RULES: &str = r#"
[firewall]
default = { inside = "deny", outside = "deny" }

[[firewall.set]]
name = "servers"
prefixes = ["203.0.113.0/24", "2001:db8:3::/64"]

[[firewall.rule]]
action = "reject"
in = "outside"
protocol = "tcp"
destination_ports = ["20-22"]

[[firewall.rule]]
action = "deny"
protocol = "tcp"
source_ports = ["666"]

[[firewall.rule]]
action = "allow"
in = "outside"
out = "inside"
source = ["@servers"]
protocol = "tcp"
destination_ports = ["7", "8000-8010"]

[[firewall.rule]]
action = "allow"
in = "outside"
out = "inside"
protocol = "udp"
destination_ports = ["7", "123"]

[[firewall.rule]]
action = "reject"
in = "outside"
protocol = "udp"
destination_ports = ["161"]

[[firewall.rule]]
action = "allow"
in = "inside"
protocol = ["udp", "tcp"]
destination = ["@servers"]
destination_ports = ["53", "5201", "7"]
"#;

const NFTABLES: &str = "table inet filter {
  set servers4 { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }
  set servers6 { type ipv6_addr; flags interval; elements = { 2001:db8:3::/64 } }
  chain forward { type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname outside tcp dport 20-22 reject with tcp reset
    tcp sport 666 drop
    iifname outside oifname inside ip saddr @servers4 tcp dport { 7, 8000-8010 } accept
    iifname outside oifname inside ip6 saddr @servers6 tcp dport { 7, 8000-8010 } accept
    iifname outside oifname inside udp dport { 7, 123 } accept
    iifname outside udp dport 161 reject with icmpx admin-prohibited
    iifname inside ip daddr @servers4 tcp dport { 53, 5201, 7 } accept
    iifname inside ip daddr @servers4 udp dport { 53, 5201, 7 } accept
    iifname inside ip6 daddr @servers6 tcp dport { 53, 5201, 7 } accept
    iifname inside ip6 daddr @servers6 udp dport { 53, 5201, 7 } accept
  }
}";

const PORTS: &str = "1-30,53,80,666,7999-8012,5201";
/// nmap waits for what says nothing.
const UDP_PORTS: &str = "7,53,123,161";

fn topology() -> Result<Topology> {
    let net = Topology::new(Options::default())?;
    net.world.ip("route add 10.0.1.0/24 via 198.51.100.10")?;
    Ok(net)
}

/// What a scan says of each port.
fn scan(from: &Netns, target: &str, more: &str) -> Result<BTreeMap<String, String>> {
    let v6 = if target.contains(':') { "-6 " } else { "" };
    let ports = if more == "-sU" { UDP_PORTS } else { PORTS };
    let said = from.run("nmap", &format!("{v6}-Pn -n -T4 --max-retries 2 -p {ports} {more} -oG - {target}"))?;
    let line = said.lines().find(|line| line.contains("Ports:")).with_context(|| format!("no ports in {said}"))?;
    let list = line.split("Ports:").nth(1).unwrap_or_default().split('\t').next().unwrap_or_default();
    let port = |entry: &str| {
        let mut fields = entry.trim().split('/');
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    Ok(list.split(',').filter_map(port).collect())
}

fn scans(net: &Topology) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let _open = serve::tcp_echo(&net.clients[0], &[7, 22, 80, 8000, 8005, 8011], 8)?;
    let _served = serve::tcp_echo(&net.server, &[7, 53, 80], 8)?;
    let _datagrams = serve::udp_echo(&net.clients[0], &[7])?;
    let (client, client6) = ("10.0.1.10", "2001:db8:1::10");
    let inward =
        [(client, "-sS"), (client, "-sS -g 666"), (client, "-sA"), (client6, "-sS"), (client, "-sU"), (client6, "-sU")];
    let outward = [("203.0.113.10", "-sS"), ("2001:db8:3::10", "-sS")];
    let from_server = inward.map(|(target, how)| (&net.server, target, how));
    let from_client = outward.map(|(target, how)| (&net.clients[0], target, how));
    let all = from_server.into_iter().chain(from_client);
    all.map(|(from, target, how)| Ok((format!("{how} {target}"), scan(from, target, how)?))).collect()
}

#[test]
fn nftables_and_forwarder_answer_scans_alike() -> Result<()> {
    let by_nft = {
        let net = topology()?;
        net.appliance.set_sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, NFTABLES)?;
        net.appliance.run("nft", &format!("-f {}", file.path().display()))?;
        scans(&net)?
    };
    let net = topology()?;
    let appliance = Appliance::start(&net, &format!("{NO_NAT}{RULES}{SMALL_TABLE}"))?;
    let by_forwarder = scans(&net)?;
    for ((how, nft), (_, own)) in by_nft.iter().zip(&by_forwarder) {
        ensure!(nft == own, "{how}:\n nftables {nft:?}\nforwarder {own:?}\n{}", appliance.log());
    }
    let [(_, tcp), _, _, _, (_, udp), ..] = &by_forwarder[..] else { bail!("{by_forwarder:?}") };
    let state = |seen: &BTreeMap<String, String>, ports: [&str; 3]| ports.map(|port| seen.get(port).cloned());
    let [open, closed, filtered] = ["open", "closed", "filtered"].map(|state| Some(state.to_owned()));
    // What most ports are, nmap does not list: filtered.
    ensure!(state(tcp, ["7", "8001", "80"]) == [open.clone(), closed.clone(), None], "{tcp:?}");
    ensure!(state(udp, ["7", "123", "161"]) == [open, closed, filtered], "{udp:?}");
    Ok(())
}

/// Both sides deny by default; what is allowed works as if there were no firewall.
#[test]
fn real_programs_work_through_default_deny() -> Result<()> {
    let rules = r#"
[firewall]
default = { inside = "deny", outside = "deny" }
[[firewall.rule]]
action = "allow"
in = "inside"
protocol = "tcp"
destination_ports = ["80", "22", "5201"]
[[firewall.rule]]
action = "allow"
in = "inside"
protocol = "udp"
destination_ports = ["53", "33434-33534", "44444-44500"]
[[firewall.rule]]
action = "allow"
in = "outside"
protocol = "tcp"
source_ports = ["20"]
destination = ["2001:db8:1::/64"]
"#;
    let options = Options { server_mtu: 1400, ..Options::default() };
    let lab = Lab::with_config(options, &format!("{rules}{SMALL_TABLE}"))?;
    let _http = serve::http(&lab.net.server, 80)?;
    let _dns = serve::dns(&lab.net.server)?;
    let _ssh = serve::tcp_echo(&lab.net.server, &[22], 8)?;
    let _data = serve::tcp_echo(lab.client(), &[40_000], 8)?;
    let mut iperf = lab.net.server.spawn("iperf3", "-s -1")?;
    for family in Family::BOTH {
        let server = lab.server(family);
        let url = format!("http://{}/100000", lab.authority(family, 80));
        lab.client().run("curl", &format!("-sS -m 30 -o /dev/null {url}")).context("curl")?;
        lab.client().run("dig", &format!("+time=20 +tries=1 @{server} example.com")).context("DNS")?;
        let mut idle = EchoConnection::open(lab.client(), SocketAddr::new(server, 22))?;
        idle.ping()?;
        let hops = lab.client().run("traceroute", &format!("-n -q 1 -w 10 {server}")).context("traceroute")?;
        ensure!(hops.contains(&server.to_string()) && hops.lines().count() >= 3, "{hops}");
        let path = lab.client().run("tracepath", &format!("-n -p 44444 {server}")).context("path MTU")?;
        ensure!(path.contains("pmtu 1400"), "{path}");
        std::thread::sleep(Duration::from_secs(2));
        idle.ping().context("an idle connection")?;
        let refused = lab.client().run("curl", &format!("-sS -m 1 http://{}/", lab.authority(family, 8080)));
        ensure!(refused.is_err(), "what no rule allows worked");
    }
    // Active FTP's data connection comes from port 20 to the client; IPv4 has no way in through NAT without port forwarding.
    let active = "-T2 OPEN:/dev/null,rdonly TCP6:[2001:db8:1::10]:40000,bind=[2001:db8:3::10]:20,connect-timeout=20";
    lab.net.server.run("socat", active).context("a data connection from outside")?;
    lab.client().run("iperf3", "-c 203.0.113.10 -t 1 -J").context("iperf3")?;
    ensure!(!iperf.is_running() || iperf.finish().is_ok(), "iperf3's server");
    Ok(())
}
