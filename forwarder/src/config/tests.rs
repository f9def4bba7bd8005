//! What is accepted, and every refusal in full.

use super::*;
use std::time::Duration;

const SAMPLE: &str = r#"
[[interface]]
name = "ens5"
role = "outside"

[[interface]]
name = "ens6"
role = "inside"

[nat]
mapping   = "endpoint-dependent"
filtering = "address-and-port-dependent"
ports     = "1024-64511"
[[nat.source]]
from = ["10.0.0.0/16", "10.1.2.3"]
to   = ["0.0.0.0/0"]
addresses = ["198.51.100.10", "198.51.100.16/28"]
[[nat.source]]
[[nat.exempt]]
to = ["10.0.0.0/8"]

[firewall]
default = { inside = "allow", outside = "deny" }

[timeouts]
tcp_established = "2h 4m"
udp_stream = "3m"
udp = "30s"

[flows]
max = "1m"
max_ipv6 = 4096
pick_up_tcp = "never"

[icmp]
errors_per_second_per_cpu = 100

[measure]
time_one_in = 1024
"#;

fn refusal(text: &str) -> String {
    let refusal = parse(text, "f.toml").expect_err(text).to_string();
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    refusal
}

fn prefixes(texts: &[&str]) -> Vec<ipnet::Ipv4Net> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_whole_config_is_read() {
    let config = parse(SAMPLE, "f.toml").unwrap();
    let interface = |name: &str, role| Interface {
        name: name.to_owned(),
        role,
        reverse_path: ReversePath::Off,
        drops_bogons: false,
    };
    assert_eq!(config.interfaces, [interface("ens5", Role::Outside), interface("ens6", Role::Inside)]);
    let everything = prefixes(&["0.0.0.0/0"]);
    let first = SourceRule {
        from: prefixes(&["10.0.0.0/16", "10.1.2.3/32"]),
        to: everything.clone(),
        addresses: prefixes(&["198.51.100.10/32", "198.51.100.16/28"]),
    };
    assert_eq!(config.nat.sources, [first, SourceRule { to: everything, ..SourceRule::default() }]);
    assert_eq!(config.nat.exempts, [ExemptRule { from: vec![], to: prefixes(&["10.0.0.0/8"]) }]);
    assert_eq!(config.nat.ports, 1024..=64_511);
    assert_eq!(config.firewall, Firewall::default());
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(7440));
    assert_eq!(config.timeouts.udp_stream, Duration::from_secs(180));
    assert_eq!(config.timeouts.icmp, Duration::from_secs(60));
    assert_eq!(config.flows, Flows { max: Some(1 << 20), max_ipv6: Some(4096), pick_up_tcp: PickUpTcp::Never });
    assert_eq!(config.icmp.errors_per_second_per_cpu, 100);
    assert_eq!(config.measure.time_one_in, Some(1024));
    assert_eq!(config.origin.place("flows.max"), "f.toml:31");
    assert_eq!(config.origin.place("nat.source"), "f.toml:14");
    assert_eq!(config.origin.place("timeouts.icmp"), "f.toml");
}

#[test]
fn an_empty_config_is_the_default() {
    let config = parse("", "f.toml").unwrap();
    assert_eq!(Config { origin: Origin::default(), ..config }, Config::default());
    let sections = "[nat]\n[firewall]\n[timeouts]\n[flows]\n[icmp]\n[measure]\n";
    let config = parse(sections, "f.toml").unwrap();
    assert_eq!(Config { origin: Origin::default(), ..config }, Config::default());
    assert_eq!(
        parse("interface = []", "f.toml").map_err(|error| error.to_string()).unwrap_err(),
        refusal("interface = []")
    );
}

#[test]
fn values_have_more_than_one_form() {
    let measured = |text: &str| parse(&format!("measure.time_one_in = {text}"), "f.toml").unwrap().measure.time_one_in;
    assert_eq!(measured("\"off\""), None);
    assert_eq!(measured("0"), None);
    assert_eq!(measured("1"), Some(1));
    assert_eq!(measured("\"1k\""), Some(1024));
    let config = parse("flows = { max = 0x1_0000 }\n[firewall.default]\ninside = \"deny\"", "f.toml").unwrap();
    assert_eq!(config.flows.max, Some(65_536));
    assert_eq!(config.firewall.default, Defaults { inside: Action::Deny, outside: Action::Deny });
}

const INTERFACES: &[(&str, &str)] = &[
    (
        "[[interface]]\nname = \"ens5\"\nrole = \"wan\"",
        "f.toml:3: interface.role = \"wan\": must be \"inside\" or \"outside\" or \"both\"",
    ),
    (
        "interface = [{ name = \"ens5\", role = \"inside\" },\n{ name = \"ens5\", role = \"outside\" }]",
        "f.toml:2: interface.name = \"ens5\": is listed already, and an interface has one role; remove one of the entries",
    ),
    (
        "interface = [{ name = \"ens5\", role = \"both\" },\n{ name = \"ens6\", role = \"inside\" }]",
        "f.toml:2: interface.role = \"inside\": does not go with role \"both\" of ens5: an interface that serves both sides \
         stands without inside and outside ones; change one of the roles",
    ),
    (
        "interface = [{ name = \"ens5\", role = \"outside\" },\n{ name = \"ens6\", role = \"both\" }]",
        "f.toml:2: interface.role = \"both\": does not go with role \"outside\" of ens5: an interface that serves both sides \
         stands without inside and outside ones; change one of the roles",
    ),
    (
        "[[interface]]\nname = \"a-name-of-16-byt\"\nrole = \"inside\"",
        "f.toml:2: interface.name = \"a-name-of-16-byt\": cannot be an interface: a name has 1 to 15 bytes without spaces, \
         `/` and `:`; write the one that `ip link` shows",
    ),
    (
        "\n[[interface]]\nrole = \"inside\"",
        "f.toml:2: interface.name is missing; write name = \"ens5\", as `ip link` shows it",
    ),
    (
        "[[interface]]\nname = \"ens5\"",
        "f.toml:1: interface.role is missing; write role = \"inside\", \"outside\" or \"both\"",
    ),
    (
        "[interface]\nname = \"ens5\"",
        "f.toml:1: interface = [interface]: must be a list of sections; write [[interface]] and its keys below, once for each",
    ),
    (
        "[[interface]]\nname = 5\nrole = \"inside\"",
        "f.toml:2: interface.name = 5: must be a text; write the name that `ip link` shows",
    ),
];

#[test]
fn interfaces_are_refused_in_full() {
    for (text, expected) in INTERFACES {
        assert_eq!(refusal(text), *expected);
    }
    let interface = |name: &str| format!("[[interface]]\nname = \"{name}\"\nrole = \"inside\"\n");
    let many: String = (0..33).map(|n| interface(&format!("eth{n}"))).collect();
    let expected = "f.toml:98: interface.name = \"eth32\": is one too many: 32 interfaces can be served; remove some";
    assert_eq!(refusal(&many), expected);
    for name in ["", "a b", "a/b", "eth0:1", ".", "..", "\\n"] {
        assert!(refusal(&interface(name)).contains("cannot be an interface"), "{name:?}");
    }
}

const TRANSLATION: &[(&str, &str)] = &[
    (
        "[nat]\nmapping = \"endpoint-independent\"",
        "f.toml:2: nat.mapping = \"endpoint-independent\": is not supported by this version; write \"endpoint-dependent\"",
    ),
    ("[nat]\nmapping = \"symmetric\"", "f.toml:2: nat.mapping = \"symmetric\": must be \"endpoint-dependent\""),
    (
        "[nat]\nfiltering = \"address-dependent\"",
        "f.toml:2: nat.filtering = \"address-dependent\": is not supported by this version; write \
             \"address-and-port-dependent\"",
    ),
    (
        "[nat]\nports = \"64511-1024\"",
        "f.toml:2: nat.ports = \"64511-1024\": is a range without a port in it; write \"1024-64511\"",
    ),
    (
        "[nat]\nports = \"0-1023\"",
        "f.toml:2: nat.ports = \"0-1023\": begins with port 0, which cannot be used; allowed are 1 to 65535, so begin \
             with 1 or more",
    ),
    (
        "[nat]\nports = 1024",
        "f.toml:2: nat.ports = 1024: is not a port range; write the first and the last port, such as \"1024-64511\"",
    ),
    (
        "[[nat.exempt]]\nfrom = [\"10.0.0.0/8\"]",
        "f.toml:1: nat.exempt.to is missing; write to = [\"10.0.0.0/8\"], the networks that see the true source",
    ),
    (
        "[[nat.source]]\nfrom = []",
        "f.toml:2: nat.source.from = []: must be a list with at least one prefix, such as [\"10.0.0.0/16\"]",
    ),
    (
        "[[nat.source]]\nto = \"10.0.0.0/8\"",
        "f.toml:2: nat.source.to = \"10.0.0.0/8\": must be a list with at least one prefix, such as [\"10.0.0.0/16\"]",
    ),
    (
        "[[nat.source]]\nfrom = [\n  \"10.0.0.0/8\",\n  \"10.1.2.3/16\",\n]",
        "f.toml:4: nat.source.from = \"10.1.2.3/16\": has bits set beyond its length; write \"10.1.0.0/16\" for the \
             network or \"10.1.2.3\" for the address",
    ),
    (
        "[[nat.exempt]]\nto = [\"2001:db8::/32\"]",
        "f.toml:2: nat.exempt.to = \"2001:db8::/32\": is IPv6, but only IPv4 is translated; write an IPv4 prefix such as \
             \"10.0.0.0/16\", or remove it",
    ),
    (
        "[[nat.source]]\naddresses = []",
        "f.toml:2: nat.source.addresses = []: must be a list with at least one address, such as [\"198.51.100.10\"]",
    ),
    (
        "[[nat.source]]\naddresses = [\"198.51.100.0/28\", \"198.51.100.3\"]",
        "f.toml:2: nat.source.addresses = \"198.51.100.3\": overlaps with \"198.51.100.0/28\" of the same list; write \
             every address once",
    ),
    (
        "[[nat.source]]\naddresses = [\"224.0.0.1\"]",
        "f.toml:2: nat.source.addresses = \"224.0.0.1\": cannot be a packet's source; write addresses that hosts can have",
    ),
];

#[test]
fn translation_is_refused_in_full() {
    for (text, expected) in TRANSLATION {
        assert_eq!(refusal(text), *expected);
    }
    for address in ["0.0.0.0", "127.0.0.1", "255.255.255.255", "0.0.0.0/0", "96.0.0.0/3"] {
        assert!(
            refusal(&format!("[[nat.source]]\naddresses = [\"{address}\"]")).contains("cannot be a packet's source")
        );
    }
}

const NUMBERS: &[(&str, &str)] = &[
    (
        "[timeouts]\nudp = 30",
        "f.toml:2: timeouts.udp = 30: is not a duration; write a number and its unit, such as \"30s\" or \"10m\"",
    ),
    (
        "[timeouts]\nudp = \"2h\"",
        "f.toml:2: timeouts.udp = \"2h\": is out of range; write a duration from \"1s\" to \"3600s\"",
    ),
    (
        "[timeouts]\ntcp_established = \"10ms\"",
        "f.toml:2: timeouts.tcp_established = \"10ms\": is out of range; write a duration from \"1s\" to \"432000s\"",
    ),
    (
        "[timeouts]\nfragment = \"3m\"",
        "f.toml:2: timeouts.fragment = \"3m\": is out of range; write a duration from \"1s\" to \"120s\"",
    ),
    (
        "[flows]\nmax = \"lots\"",
        "f.toml:2: flows.max = \"lots\": is not a size; write a number such as 4096, \"64k\" or \"1m\"",
    ),
    ("[flows]\nmax = 100", "f.toml:2: flows.max = 100: is out of range; write a number from \"1k\" to \"16m\""),
    ("[flows]\nmax = -1", "f.toml:2: flows.max = -1: is out of range; write a number from \"1k\" to \"16m\""),
    (
        "[flows]\nmax_ipv6 = \"17m\"",
        "f.toml:2: flows.max_ipv6 = \"17m\": is out of range; write a number from \"1k\" to \"16m\"",
    ),
    (
        "[flows]\npick_up_tcp = true",
        "f.toml:2: flows.pick_up_tcp = true: must be \"after-start\" or \"always\" or \"never\"",
    ),
    (
        "[icmp]\nerrors_per_second_per_cpu = \"2m\"",
        "f.toml:2: icmp.errors_per_second_per_cpu = \"2m\": is out of range; write a number from \"0\" to \"1m\"",
    ),
    (
        "[measure]\ntime_one_in = 100",
        "f.toml:2: measure.time_one_in = 100: must be a power of two from 1 to 1048576, such as 64, or \"off\"",
    ),
    (
        "[firewall]\ndefault = { outside = \"drop\" }",
        "f.toml:2: firewall.default.outside = \"drop\": must be \"allow\" or \"deny\" or \"reject\"",
    ),
    (
        "[firewall]\ndefault = \"deny\"",
        "f.toml:2: firewall.default = \"deny\": must be a section; write [firewall.default] and its keys below",
    ),
];

#[test]
fn numbers_are_refused_in_full() {
    for (text, expected) in NUMBERS {
        assert_eq!(refusal(text), *expected);
    }
}

#[test]
fn unknown_keys_and_broken_text_are_refused_in_full() {
    let top = "interface, nat, firewall, timeouts, flows, flow_logs, icmp, measure";
    let cases = [
        (
            "\n[flow]\nmax = 1\n[zzz]",
            format!("f.toml:2: flow: unknown key, allowed here: {top}; correct or remove it"),
        ),
        (
            "[[interface]]\nnmae = \"ens5\"",
            "f.toml:2: interface.nmae: unknown key, allowed here: name, role, reverse_path, bogons; correct or remove it".to_owned(),
        ),
        (
            "[[nat.static]]\npublic = \"198.51.100.20\"",
            "f.toml:1: nat.static: unknown key, allowed here: mapping, filtering, ports, source, exempt; correct or remove it"
                .to_owned(),
        ),
        (
            "\"a\\nb\" = 1",
            format!("f.toml:1: a\\nb: unknown key, allowed here: {top}; correct or remove it"),
        ),
        (
            "[timeouts]\nudp = 30s",
            "f.toml:2: `udp = 30s` is not TOML: string values must be quoted, expected literal string; correct this line".to_owned(),
        ),
        ("[nat]\n[nat]", "f.toml:2: `[nat]` is not TOML: duplicate key; correct this line".to_owned()),
        (
            "nat = \"a long text that goes on and on and on and on and on and on and on and on\"",
            "f.toml:1: nat = \"a long text that goes on and on and on and on and on and on…: must be a section; write [nat] \
             and its keys below"
                .to_owned(),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), expected);
    }
}

#[test]
fn files_are_read_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("forwarder.toml");
    let missing = read(Some(&path)).unwrap_err();
    let expected =
        format!("cannot read the config {}; name a file that this user may read with --config", path.display());
    assert_eq!(missing.to_string(), expected);
    assert!(std::error::Error::source(&missing).is_some());
    std::fs::write(&path, "[flows]\nmax = \"64k\"\n").unwrap();
    let config = read(Some(&path)).unwrap();
    assert_eq!((config.flows.max, config.origin.to_string()), (Some(65_536), path.display().to_string()));
    std::fs::write(&path, "[flows]\nmax = \"64g\"\n").unwrap();
    assert!(read(Some(&path)).unwrap_err().to_string().starts_with(&format!("{}:2: flows.max", path.display())));
    assert_eq!(Config::default().origin.to_string(), "built-in defaults");
}
