//! Packets too large for what comes next: who says so, with which MTU, and that senders find the size by themselves.

use anyhow::{Result, ensure};
use forwarder_kit::serve;
use forwarder_kit::topology::{Options, Shape};
use forwarder_tests::{Family, Lab, in_both_shapes};

in_both_shapes! {
    tracepath_finds_the_smallest_mtu
    an_error_from_beyond_reaches_the_client
    streams_pass_legs_of_different_mtu
}

fn tracepath_finds_the_smallest_mtu(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, outside_mtu: 1400, server_mtu: 1300, ..Options::default() })?;
    for family in Family::BOTH {
        warm_up(&lab, family)?;
        let said = lab.client().run("tracepath", &format!("-n -m 8 {}", lab.server(family)))?;
        ensure!(said.contains("pmtu 1400"), "{family:?}: the appliance's leg does not show: {said}");
        ensure!(said.contains("Resume: pmtu 1300"), "{family:?}: the server's leg does not show: {said}");
        ensure!(said.contains(&format!("{}  ", lab.server(family))), "{family:?}: the server is not reached: {said}");
    }
    Ok(())
}

/// The router beyond the appliance says "too big" about the translated packet; the client has to understand it.
fn an_error_from_beyond_reaches_the_client(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, server_mtu: 1300, ..Options::default() })?;
    for (family, header, says) in [(Family::V4, 28, "mtu = 1300"), (Family::V6, 48, "mtu=1300")] {
        warm_up(&lab, family)?;
        let ping = |size: u32, count: u32, patience: u32| {
            let arguments = format!("-c {count} -i 0.05 -W {patience} -M do -s {size} {}", lab.server(family));
            let output = lab.client().command("ping").args(arguments.split_whitespace()).output()?;
            anyhow::Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).to_lowercase())
        };
        let said = ping(1400, 2, 1)?;
        ensure!(said.contains(says), "{family:?}: no word of the MTU: {said}");
        ensure!(said.contains(" 100% packet loss"), "{family:?}: it cannot have passed: {said}");
        let said = ping(1300 - header, 3, 20)?;
        ensure!(said.contains(" 0% packet loss"), "{family:?}: what fits has to pass: {said}");
    }
    Ok(())
}

/// Client and server believe in 1,500; the legs between take less, and each direction has to learn it.
fn streams_pass_legs_of_different_mtu(shape: Shape) -> Result<()> {
    let lab = Lab::new(Options { shape, outside_mtu: 1400, ..Options::default() })?;
    let _server = serve::http(&lab.net.server, 8080)?;
    let file = lab.appliance.scratch().join("upload");
    std::fs::write(&file, vec![b'u'; 2_000_000])?;
    for family in Family::BOTH {
        let url = format!("http://{}", lab.authority(family, 8080));
        let fetch = format!("-sS -m 60 -o /dev/null -w %{{size_download}} {url}/2000000");
        let fetched = lab.client().run("curl", &fetch)?;
        ensure!(fetched == "2000000", "{family:?}: got {fetched} bytes");
        let put = format!("-sS -m 60 -o /dev/null -w %{{size_upload}} -T {} {url}/0", file.display());
        let sent = lab.client().run("curl", &put)?;
        ensure!(sent == "2000000", "{family:?}: sent {sent} bytes");
    }
    Ok(())
}

/// Neighbours known everywhere, so that the first measured packet is not the one that waits.
fn warm_up(lab: &Lab, family: Family) -> Result<()> {
    lab.client().run("ping", &format!("-c 3 -i 0.2 -W 2 -q {}", lab.server(family)))?;
    Ok(())
}
