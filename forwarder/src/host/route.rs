//! What the kernel says of a way, for people who ask why: iproute2 knows how to put the question and the answer.

use crate::firewall::explain::KernelRoute;
use serde::Deserialize;
use std::net::IpAddr;
use tokio::process::Command;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: Option<String>,
    gateway: Option<String>,
    dev: Option<String>,
}

/// The way to an address, as if from `source` by the interface `enters`, or as the host itself would send.
pub async fn route_to(address: IpAddr, from: Option<(IpAddr, &str)>) -> KernelRoute {
    let mut command = Command::new("ip");
    command.args(["-json", "route", "get", &address.to_string()]);
    if let Some((source, enters)) = from {
        command.args(["from", &source.to_string(), "iif", enters]);
    }
    let none = |why: &str| KernelRoute { out: None, text: format!("none: {}", why.trim()) };
    let output = match command.output().await {
        Ok(output) => output,
        Err(error) => return none(&format!("cannot run `ip`: {error}")),
    };
    let answers: Vec<Answer> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let Some(answer) = answers.into_iter().next() else { return none(&String::from_utf8_lossy(&output.stderr)) };
    let dev = answer.dev.unwrap_or_default();
    let index = nix::net::if_::if_nametoindex(dev.as_str()).ok();
    match (answer.kind.as_deref(), index) {
        (Some("local"), _) => KernelRoute { out: None, text: "the host itself".to_owned() },
        (Some("unreachable" | "prohibit" | "blackhole"), _) | (_, None) => {
            none(answer.kind.as_deref().unwrap_or("no way"))
        }
        (_, Some(index)) => {
            let via = answer.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
            KernelRoute { text: format!("out by {dev}{via}"), out: Some((dev, index)) }
        }
    }
}
