//! Where the host itself would send, by iproute2.

use serde::Deserialize;
use std::net::IpAddr;
use tokio::process::Command;

#[derive(Deserialize)]
struct Answer {
    /// None for unicast.
    #[serde(rename = "type")]
    kind: Option<String>,
    dev: Option<String>,
}

/// Name and index of the interface by which the host reaches an address; none when it does not, or is it.
pub async fn interface_towards(address: IpAddr) -> Option<(String, u32)> {
    let output = Command::new("ip").args(["-json", "route", "get", &address.to_string()]).output().await.ok()?;
    let answers: Vec<Answer> = serde_json::from_slice(&output.stdout).ok()?;
    let name = answers.into_iter().next().filter(|answer| answer.kind.is_none())?.dev?;
    let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
    Some((name, index))
}
