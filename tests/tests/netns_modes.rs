//! Drivers without native XDP: the generic path forwards as well, and `status` says which path it is.

use anyhow::{Result, ensure};
use forwarder_kit::{Appliance, Topology, serve};
use forwarder_tests::{Family, Lab, SMALL_TABLE};

/// A frame that a native program redirects cannot leave by such a driver, so one of them makes all generic.
#[test]
fn one_driver_without_native_xdp_makes_all_generic() -> Result<()> {
    let net = Topology::two_armed()?;
    for command in [
        "link add link outside name mv0 type macvlan mode bridge",
        "address flush dev outside",
        "link set mv0 up",
        "address add 198.51.100.10/24 dev mv0",
        "route add default via 198.51.100.1",
    ] {
        net.appliance.ip(command)?;
    }
    // Or the link below puts packets together that are larger than the way out takes.
    net.appliance.run("ethtool", "-K outside gro off")?;
    let interface = |name: &str, role: &str| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n");
    let config = format!("{}{}{SMALL_TABLE}", interface("mv0", "outside"), interface("inside", "inside"));
    let lab = Lab { appliance: Appliance::start_in(&net.appliance, &config)?, net };
    let status = lab.appliance.status()?;
    for name in ["mv0", "inside"] {
        ensure!(status.mode(name)? == "generic", "{name} is {}: {}", status.mode(name)?, status.json);
    }
    let server = serve::http(&lab.net.server, 8080)?;
    let url = format!("http://{}/1000000", lab.authority(Family::V4, 8080));
    let fetched = lab.client().run("curl", &format!("-sS -m 60 -o /dev/null -w %{{size_download}} {url}"))?;
    ensure!(fetched == "1000000", "got {fetched} bytes");
    ensure!(server.addresses().iter().all(|peer| *peer == lab.seen(Family::V4)), "saw {:?}", server.addresses());
    Ok(())
}
