//! Whole plans on made-up hosts.

use super::*;
use crate::config;
use forwarder_ebpf::abi::NatAction;
use std::net::Ipv4Addr;

const MIB: u64 = 1 << 20;

fn link(name: &str, ifindex: u32, v4: &[&str], v6: &[&str]) -> Link {
    Link {
        name: name.to_owned(),
        ifindex,
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 9001,
        up: true,
        loopback: false,
        addresses_v4: v4.iter().map(|text| text.parse().unwrap()).collect(),
        addresses_v6: v6.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

/// Two Ethernet interfaces with the default route on `ens5`, loopback, a tunnel and a bridge that is down.
fn host() -> HostFacts {
    let lo = Link { loopback: true, ..link("lo", 1, &["127.0.0.1/8"], &["::1/128"]) };
    let tunnel = Link { mac: None, ..link("wg0", 4, &["192.168.9.1/24"], &[]) };
    let bridge = Link { up: false, ..link("docker0", 5, &["172.17.0.1/16"], &[]) };
    let outside = link("ens5", 2, &["198.51.100.10/24", "198.51.100.11/24"], &["fe80::2/64", "2001:db8::10/64"]);
    let inside = link("ens6", 3, &["10.0.1.1/24"], &["fe80::3/64"]);
    HostFacts {
        links: vec![lo, inside, tunnel, bridge, outside],
        default_route_v4: Some(2),
        default_route_v6: None,
        memory_bytes: 4096 * MIB,
        local_port_range: (32_768, 60_999),
    }
}

fn one_armed_host() -> HostFacts {
    let mut host = host();
    host.links.retain(|link| link.name != "ens6");
    host
}

fn try_plan(text: &str, facts: &HostFacts) -> Result<Plan, PlanError> {
    plan(&config::parse(text, "f.toml").unwrap(), facts)
}

fn planned(text: &str, facts: &HostFacts) -> Plan {
    try_plan(text, facts).unwrap()
}

/// Interfaces as `name role slot`.
fn interfaces(plan: &Plan) -> Vec<String> {
    let text = |planned: &PlannedInterface| format!("{} {:?} {}", planned.name, planned.side, planned.slot);
    plan.interfaces.iter().map(text).collect()
}

/// Rules as `from > to = addresses`, or `from > to` when exempt.
fn rules(plan: &Plan) -> Vec<String> {
    let prefix = |net: [u8; 4], mask: [u8; 4]| Ipv4Net::with_netmask(net.into(), mask.into()).unwrap();
    let text = |rule: &NatRule| {
        let (from, to) = (prefix(rule.from, rule.from_mask), prefix(rule.to, rule.to_mask));
        let pool = &plan.nat.addresses[rule.first_address.into()..][..rule.addresses.into()];
        let pool = pool.iter().map(|octets| format!(" {}", Ipv4Addr::from(*octets))).collect::<String>();
        match rule.action == NatAction::Translate as u32 {
            true => format!("{from} > {to} ={pool}"),
            false => format!("{from} > {to}{pool}"),
        }
    };
    plan.nat.rules.iter().map(text).collect()
}

const TWO_ARMED: &str =
    "[[interface]]\nname = \"ens6\"\nrole = \"inside\"\n[[interface]]\nname = \"ens5\"\nrole = \"outside\"\n";
const ONE_ARMED: &str = "[[interface]]\nname = \"ens5\"\nrole = \"both\"\n";

#[test]
fn without_a_config_the_default_route_decides() {
    let plan = plan(&Config::default(), &host()).unwrap();
    assert_eq!(interfaces(&plan), ["ens5 Outside 0", "ens6 Inside 1"]);
    assert_eq!(rules(&plan), ["0.0.0.0/0 > 0.0.0.0/0 = 198.51.100.10"]);
    let ens5 = &plan.interfaces[0];
    assert_eq!((ens5.ifindex, ens5.config.side, ens5.config.slot, ens5.config.mtu), (2, 2, 0, 9001));
    assert_eq!((ens5.config.mac, ens5.config.address4), ([2, 0, 0, 0, 0, 2], [198, 51, 100, 10]));
    assert_eq!(ens5.config.address6, "2001:db8::10".parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!(plan.interfaces[1].config.address6, [0; 16]);
    assert_eq!(plan.sizes.flows_v4.connections, 1 << 20);
    let expected = [
        "The config names no [[interface]], so ens5 with the default route is outside and all others are inside: ens6.",
        "NAT uses an address of this host, so the host's own connections use ports 64512 to 65535 instead of 32768 to \
         60999 (net.ipv4.ip_local_port_range).",
    ];
    assert_eq!(plan.notices, expected);
}

#[test]
fn without_a_config_a_single_interface_serves_both_sides() {
    let plan = planned("", &one_armed_host());
    assert_eq!(interfaces(&plan), ["ens5 Both 0"]);
    let expected = [
        "10.0.0.0/8 > 0.0.0.0/0 = 198.51.100.10",
        "172.16.0.0/12 > 0.0.0.0/0 = 198.51.100.10",
        "192.168.0.0/16 > 0.0.0.0/0 = 198.51.100.10",
        "100.64.0.0/10 > 0.0.0.0/0 = 198.51.100.10",
    ];
    assert_eq!(rules(&plan), expected);
    let expected = [
        "The config names no [[interface]] and ens5 is the only one of the host, so it serves both sides.",
        "ens5 serves both sides: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 are inside, all others outside.",
    ];
    assert_eq!(plan.notices[..2], expected);
}

#[test]
fn without_a_config_and_a_default_route_nothing_is_guessed() {
    let plan = planned("", &HostFacts { default_route_v4: Some(4), ..host() });
    assert!(plan.interfaces.is_empty() && plan.nat.rules.is_empty());
    let expected = "The config names no [[interface]] and no default route leaves by one of ens5, ens6, so it is not known \
                    which one is outside and nothing is forwarded yet; name them in the config or add a default route.";
    assert_eq!(plan.notices[0], expected);
    let plan = planned("", &HostFacts { default_route_v4: None, default_route_v6: Some(3), ..host() });
    assert_eq!(interfaces(&plan), ["ens5 Inside 0", "ens6 Outside 1"]);
    let plan = planned("", &HostFacts { links: vec![], ..host() });
    let expected = "The config names no [[interface]] and the host has no Ethernet interface that is up, so nothing is \
                    forwarded yet.";
    assert_eq!(plan.notices[0], expected);
    assert!(plan.interfaces.is_empty());
}

#[test]
fn what_the_host_lacks_is_missing_and_the_others_are_served() {
    let text = format!(
        "{}{TWO_ARMED}{}",
        "[[interface]]\nname = \"later0\"\nrole = \"inside\"\n",
        ["wg0", "lo", "far0", "docker0"]
            .map(|name| format!("[[interface]]\nname = \"{name}\"\nrole = \"inside\"\n"))
            .concat()
    );
    let mut facts = host();
    facts.links.push(link("far0", 70_000, &[], &[]));
    let plan = planned(&text, &facts);
    assert_eq!(interfaces(&plan), ["ens6 Inside 1", "ens5 Outside 2", "docker0 Inside 6"]);
    let missing: Vec<_> = plan.missing.iter().map(|missing| format!("{}: {}", missing.name, missing.why)).collect();
    let expected = [
        "later0: the host has no interface of this name now; it is served as soon as it comes",
        "wg0: it is not Ethernet; only interfaces with an Ethernet address can be served",
        "lo: it is the loopback interface; remove it from the config",
        "far0: its index 70000 is not one of 1 to 65535; create it again after a reboot",
    ];
    assert_eq!(missing, expected);
    assert_eq!(plan.notices[0], "docker0 is down, so nothing passes there until it is up.");
}

#[test]
fn more_interfaces_than_slots_are_missing() {
    let mut facts = host();
    facts.links.extend((0..40).map(|n| link(&format!("eth{n:02}"), 10 + n, &[], &[])));
    let plan = planned("", &facts);
    assert_eq!((plan.interfaces.len(), plan.missing.len()), (32, 10));
    assert_eq!(plan.missing[0].why, "32 others are served already; name those that matter in the config");
}

#[test]
fn exemptions_come_first_and_pairs_are_expanded() {
    let text = "[[nat.source]]\nfrom = [\"10.0.0.0/16\", \"10.1.0.0/16\"]\nto = [\"203.0.113.0/24\", \"0.0.0.0/0\"]\n\
                addresses = [\"198.51.100.10\", \"198.51.100.12/31\"]\n\
                [[nat.source]]\n[[nat.source]]\nfrom = [\"10.2.0.0/16\"]\naddresses = [\"198.51.100.12/31\"]\n\
                [[nat.exempt]]\nto = [\"10.0.0.0/8\"]\n[[nat.exempt]]\nfrom = [\"10.0.9.0/24\"]\nto = [\"192.0.2.1\"]\n";
    let plan = planned(&format!("{TWO_ARMED}{text}"), &host());
    let expected = [
        "0.0.0.0/0 > 10.0.0.0/8",
        "10.0.9.0/24 > 192.0.2.1/32",
        "10.0.0.0/16 > 203.0.113.0/24 = 198.51.100.10 198.51.100.12 198.51.100.13",
        "10.0.0.0/16 > 0.0.0.0/0 = 198.51.100.10 198.51.100.12 198.51.100.13",
        "10.1.0.0/16 > 203.0.113.0/24 = 198.51.100.10 198.51.100.12 198.51.100.13",
        "10.1.0.0/16 > 0.0.0.0/0 = 198.51.100.10 198.51.100.12 198.51.100.13",
        "0.0.0.0/0 > 0.0.0.0/0 = 198.51.100.10",
        "10.2.0.0/16 > 0.0.0.0/0 = 198.51.100.12 198.51.100.13",
    ];
    assert_eq!(rules(&plan), expected);
    assert_eq!(plan.nat.addresses.len(), 3, "pools that are alike share their addresses");
    let expected = "2 of the NAT addresses, 198.51.100.12 first, are not this host's: answers come back only if the network \
                    routes them here.";
    assert_eq!(plan.notices[0], expected);
}

#[test]
fn one_armed_nobody_becomes_inside_by_an_exemption() {
    let plan = planned(&format!("{ONE_ARMED}[[nat.exempt]]\nto = [\"10.0.0.0/8\"]"), &one_armed_host());
    assert_eq!(rules(&plan)[..4].iter().filter(|rule| rule.starts_with("0.0.0.0/0")).count(), 0);
    assert_eq!(plan.nat.rules.len(), 8);
    let plan = planned(&format!("{ONE_ARMED}[[nat.source]]\nfrom = [\"0.0.0.0/0\"]"), &one_armed_host());
    let expected = "ens5 serves both sides and a rule of [nat] is from 0.0.0.0/0, so what it matches counts as inside, \
                    whoever sent it, and firewall.default.inside decides on it.";
    assert_eq!(plan.notices[0], expected);
}

#[test]
fn without_an_address_nothing_is_translated_yet() {
    let mut facts = host();
    facts.links[4].addresses_v4.clear();
    let plan = planned(&format!("{TWO_ARMED}[[nat.exempt]]\nto = [\"10.0.0.0/8\"]"), &facts);
    assert_eq!(rules(&plan), ["0.0.0.0/0 > 10.0.0.0/8"]);
    let expected = "No outside interface has an IPv4 address yet, so rules that would use it translate nothing until it has \
                    one.";
    assert_eq!(plan.notices, [expected]);
    assert!(!plan.nat.host_addresses);
    let plan = planned("[[interface]]\nname = \"ens6\"\nrole = \"inside\"\n", &host());
    assert_eq!(plan.notices, ["No interface is outside, so nothing is translated."]);
}

#[test]
fn the_default_address_is_the_default_routes() {
    let outside = |name: &str| format!("[[interface]]\nname = \"{name}\"\nrole = \"outside\"\n");
    let text = outside("ens6") + &outside("ens5");
    assert_eq!(planned(&text, &host()).nat.addresses, [[198, 51, 100, 10]]);
    let facts = HostFacts { default_route_v4: None, ..host() };
    assert_eq!(planned(&text, &facts).nat.addresses, [[10, 0, 1, 1]]);
}

#[test]
fn what_does_not_fit_the_tables_is_refused() {
    let prefixes: Vec<String> = (0..129).map(|n| format!("\"10.{n}.0.0/16\"")).collect();
    let text = format!("{TWO_ARMED}[[nat.source]]\nfrom = [{}]", prefixes.join(", "));
    assert_eq!(
        try_plan(&text, &host()).unwrap_err().to_string(),
        "f.toml:7: [nat] has 129 rules once every `from` is paired with every `to`, and at most 128 fit; join prefixes or \
         remove rules"
    );
    let text = format!("{ONE_ARMED}[[nat.exempt]]\nto = [{}]", prefixes[..32].join(", "));
    assert_eq!(
        try_plan(&text, &host()).unwrap_err().to_string(),
        "f.toml:4: [nat] has 132 rules once every `from` is paired with every `to`, and at most 128 fit; join prefixes or \
         remove rules"
    );
    let source = |addresses: &str| format!("[[nat.source]]\naddresses = [\"{addresses}\"]\n");
    let text = format!("{TWO_ARMED}{}", source("198.18.0.0/23"));
    assert_eq!(
        try_plan(&text, &host()).unwrap_err().to_string(),
        "f.toml:8: [nat] has 512 public addresses, and at most 256 fit; remove some from nat.source.addresses"
    );
    let text = format!("{TWO_ARMED}{}[[nat.source]]\n", source("198.18.0.0/24"));
    assert_eq!(
        try_plan(&text, &host()).unwrap_err().to_string(),
        "f.toml:8: [nat] has 257 public addresses, and at most 256 fit; remove some from nat.source.addresses"
    );
    let text = format!("{TWO_ARMED}{0}{0}", source("198.18.0.0/24"));
    assert_eq!(planned(&text, &host()).nat.addresses.len(), 256);
}

#[test]
fn the_hosts_own_ports_make_room_for_nat() {
    let range = |ports: &str, present: (u16, u16)| {
        let facts = HostFacts { local_port_range: present, ..host() };
        let plan = planned(&format!("nat.ports = \"{ports}\""), &facts);
        (plan.nat.local_port_range, plan.notices.len())
    };
    // One notice is about the interfaces, a second about the ports.
    assert_eq!(range("1024-64511", (32_768, 60_999)), ((64_512, 65_535), 2));
    assert_eq!(range("1024-64511", (64_512, 65_535)), ((64_512, 65_535), 1));
    assert_eq!(range("50000-50007", (32_768, 60_999)), ((32_768, 49_999), 2));
    assert_eq!(range("32768-60999", (32_768, 60_999)), ((1024, 32_767), 2));
    assert_eq!(range("61000-65535", (32_768, 60_999)), ((32_768, 60_999), 1));
    assert_eq!(range("1-65535", (32_768, 60_999)), ((32_768, 60_999), 2));
    let plan = planned("nat.ports = \"1-65535\"", &host());
    let expected = "nat.ports leaves fewer than 1024 ports in one piece to the host, so its own connections share ports \
                    32768 to 60999 with NAT and may fail; narrow nat.ports.";
    assert_eq!(plan.notices[1], expected);
    let foreign = planned("[[nat.source]]\naddresses = [\"203.0.113.7\"]", &host());
    assert_eq!((foreign.nat.host_addresses, foreign.nat.local_port_range), (false, (32_768, 60_999)));
}

#[test]
fn the_switches_follow() {
    let control = planned("", &host()).control(250);
    assert_eq!((control.port_first, control.port_last, control.nat_rules), (1024, 64_511, 1));
    assert_eq!((control.inside_allowed, control.outside_allowed, control.loose_tcp), (1, 0, 0));
    assert_eq!((control.fragment_ticks, control.icmp_per_second, control.sample_mask), (15 * 250, 1000, 63));
    let text = "flows.pick_up_tcp = \"always\"\nmeasure.time_one_in = \"off\"\ntimeouts.fragment = \"1s 1ms\"\n\
                firewall.default.inside = \"deny\"";
    let control = planned(text, &host()).control(250);
    assert_eq!((control.inside_allowed, control.loose_tcp, control.fragment_ticks), (0, 1, 251));
    assert_eq!(control.sample_mask, u32::MAX);
}

#[test]
fn a_plan_reads_well() {
    let text = format!(
        "{TWO_ARMED}[[interface]]\nname = \"later0\"\nrole = \"inside\"\n[[nat.exempt]]\nto = [\"10.0.0.0/8\"]\n\
         [[nat.source]]\naddresses = [\"198.51.100.16/28\"]\n[flows]\nmax = \"64k\"\n"
    );
    let expected = "\
interfaces
  ens6            inside   02:00:00:00:00:03  mtu 9001  10.0.1.1  no IPv6
  ens5            outside  02:00:00:00:00:02  mtu 9001  198.51.100.10  2001:db8::10
  later0          inside   cannot be served: the host has no interface of this name now; it is served as soon as it comes
nat, first match
  mapping endpoint-dependent, filtering address-and-port-dependent
  ports 1024-64511 for translated flows, 32768-60999 for the host's own
    1 exempt    from 0.0.0.0/0 to 10.0.0.0/8
    2 translate from 0.0.0.0/0 to 0.0.0.0/0 as 198.51.100.16 … 198.51.100.31 (16 addresses)
firewall, new flows
  inside allow, outside deny
timeouts
  tcp_established 350s
  tcp_transitory  240s
  udp_stream      180s
  udp             30s
  icmp            60s
  other           600s
  fragment        15s
flows, 29.1 MiB in all
  IPv4 64k connections of 371 bytes, 23.1 MiB
  IPv6 16k connections of 384 bytes, 6.0 MiB
  TCP without a handshake: after-start
icmp
  1000 errors a second from each CPU
measure
  the processing time of one packet in 64
notices
  16 of the NAT addresses, 198.51.100.16 first, are not this host's: answers come back only if the network routes them here.
";
    assert_eq!(planned(&text, &host()).describe(), expected);
}

#[test]
fn a_plan_is_json() {
    let json = serde_json::to_value(planned("", &host())).unwrap();
    let at = |path: &str| json.pointer(path).unwrap_or_else(|| panic!("no {path} in {json}")).to_string();
    let expected = [
        ("/interfaces/0/name", "\"ens5\""),
        ("/interfaces/0/role", "\"outside\""),
        ("/interfaces/0/mac", "\"02:00:00:00:00:02\""),
        ("/interfaces/1/ipv6", "null"),
        ("/missing", "[]"),
        ("/nat/ports", "\"1024-64511\""),
        ("/nat/rules/0/action", "\"translate\""),
        ("/nat/rules/0/from", "\"0.0.0.0/0\""),
        ("/nat/rules/0/addresses/0", "\"198.51.100.10\""),
        ("/nat/local_port_range", "[64512,65535]"),
        ("/firewall/default/outside", "\"deny\""),
        ("/timeouts_ms/tcp_established", "350000"),
        ("/flows/ipv4/connections", "1048576"),
        ("/flows/ipv4/bytes_per_connection", "371"),
        ("/flows/memory_bytes", "488935968"),
        ("/icmp/errors_per_second_per_cpu", "1000"),
        ("/measure/time_one_in", "64"),
    ];
    for (path, value) in expected {
        assert_eq!(at(path), value, "{path}");
    }
}

#[test]
fn rules_that_others_hide_are_named_with_them() {
    let text = r#"
        [[firewall.rule]]
        name = "low"
        action = "allow"
        protocol = "tcp"
        destination_ports = ["1-99"]
        [[firewall.rule]]
        name = "high"
        action = "deny"
        protocol = ["tcp", "udp"]
        destination_ports = ["100-200"]
        [[firewall.rule]]
        name = "between"
        action = "allow"
        protocol = "tcp"
        source = ["10.0.0.0/8"]
        destination_ports = ["50-150"]
        [[firewall.rule]]
        name = "above"
        action = "allow"
        protocol = "tcp"
        destination_ports = ["150-250"]
        [[firewall.rule]]
        name = "within"
        action = "allow"
        protocol = "udp"
        destination_ports = ["110-120"]
    "#;
    let json = serde_json::to_value(planned(text, &host())).unwrap();
    let unmet = |at: usize| json.pointer(&format!("/firewall/rules/{at}/unmet")).unwrap().as_str().map(str::to_owned);
    let expected = [None, None, Some("hidden by `low`, `high` together"), None, Some("hidden by `high`")];
    for (at, expected) in expected.into_iter().enumerate() {
        assert_eq!(unmet(at).as_deref(), expected, "rule {at}");
    }
}
