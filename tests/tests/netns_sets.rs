//! Sets that were changed live: through reloads and a killed controller, until the configuration says otherwise.

use anyhow::{Context, Result, ensure};
use forwarder_kit::serve;
use forwarder_kit::topology::Options;
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use std::net::SocketAddr;

/// Nobody may speak to what is in the set.
fn rules(prefixes: &str) -> String {
    format!(
        "[[firewall.set]]\nname = \"bad\"\nprefixes = [{prefixes}]\n[[firewall.set]]\nname = \"other\"\nprefixes = [\"192.0.2.7\"]\n\
         [[firewall.rule]]\nname = \"no bad\"\naction = \"reject\"\ndestination = [\"@bad\", \"@other\"]\n{SMALL_TABLE}"
    )
}

/// Whether the server can be reached, by family.
fn reached(lab: &Lab) -> [bool; 2] {
    Family::BOTH.map(|family| EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7)).is_ok())
}

fn listed(lab: &Lab) -> Result<String> {
    lab.appliance.ask(&["sets", "list"])
}

#[test]
fn a_live_change_stays_until_the_configuration_changes() -> Result<()> {
    let mut lab = Lab::with_config(Options::default(), &rules("\"192.0.2.1\""))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    ensure!(reached(&lab) == [true, true]);
    lab.appliance.ask(&["sets", "add", "bad", "203.0.113.0/24", "2001:db8:3::/48"])?;
    ensure!(reached(&lab) == [false, false], "both are in the set now");
    lab.appliance.ask(&["sets", "remove", "bad", "2001:db8:3::/48", "192.0.2.1"])?;
    ensure!(reached(&lab) == [false, true] && listed(&lab)?.contains("live: +1 -1"), "{}", listed(&lab)?);

    let said = lab.appliance.ask(&["reload"])?;
    ensure!(said.contains("set bad keeps its live changes: 1 ranges added, 1 removed"), "{said}");
    ensure!(reached(&lab) == [false, true], "a reload of the same text changes nothing");
    lab.appliance.kill9()?;
    ensure!(reached(&lab) == [false, true], "nor does the death of the controller");
    lab.appliance.start_again()?;
    ensure!(reached(&lab) == [false, true] && listed(&lab)?.contains("live: +1 -1"), "{}", listed(&lab)?);

    // What cannot be applied costs nothing.
    lab.appliance.write_config("[[firewall.rule]]\naction = \"perhaps\"\n")?;
    ensure!(!lab.appliance.try_ask(&["reload"])?.status.success(), "nonsense was applied");
    ensure!(reached(&lab) == [false, true] && listed(&lab)?.contains("live: +1 -1"), "{}", listed(&lab)?);

    // Nor does what is found out late, in a file without the set.
    let config = |more: &str| lab.appliance.write_config(&format!("{}{more}", lab.net.config()));
    let nowhere = "[[flow_logs.destination]]\nkind = \"file\"\npath = \"/dev/null/flow.log\"\n";
    config(&format!("{SMALL_TABLE}{nowhere}"))?;
    ensure!(!lab.appliance.try_ask(&["reload"])?.status.success(), "a file in a file was opened");

    // Another set's text is none of this one's business; its own is the last word.
    config(&rules("\"192.0.2.1\"").replace("192.0.2.7", "192.0.2.8"))?;
    ensure!(lab.appliance.ask(&["reload"])?.contains("set bad keeps"), "{}", lab.appliance.log());
    ensure!(reached(&lab) == [false, true]);
    config(&rules("\"192.0.2.1\", \"2001:db8:3::/48\""))?;
    let said = lab.appliance.ask(&["reload"])?;
    ensure!(said.contains("set bad is configured otherwise now"), "{said}");
    ensure!(reached(&lab) == [true, false] && !listed(&lab)?.contains("live"), "{}", listed(&lab)?);
    Ok(())
}

#[test]
fn a_reset_or_a_stop_ends_a_live_change() -> Result<()> {
    let mut lab = Lab::with_config(Options::default(), &rules("\"192.0.2.1\""))?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    lab.appliance.ask(&["sets", "replace", "bad", "203.0.113.10"])?;
    ensure!(reached(&lab) == [false, true]);
    let said = lab.appliance.ask(&["sets", "reset", "bad"])?;
    ensure!(said.contains("as configured") && reached(&lab) == [true, true], "{said}");
    ensure!(lab.appliance.ask(&["sets", "list", "bad"])?.trim() == "192.0.2.1");
    ensure!(!lab.appliance.try_ask(&["sets", "reset", "nobody"])?.status.success(), "there is no such set");

    lab.appliance.ask(&["sets", "add", "bad", "203.0.113.10"])?;
    lab.appliance.stop()?;
    lab.appliance.start_again().context("after a stop")?;
    ensure!(reached(&lab) == [true, true] && !listed(&lab)?.contains("live"), "{}", listed(&lab)?);
    Ok(())
}
