//! Which interfaces are served and who is behind them: as configured, or as the default route says.

use super::{HostFacts, Link, MissingInterface, PlannedInterface};
use crate::config::units::list_text;
use crate::config::{Config, ReversePath, Role};
use forwarder_ebpf::abi::{IfaceConfig, MAX_IFACES};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An interface that is to be served; its place in the list is its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub role: Role,
    pub reverse_path: ReversePath,
    pub drops_bogons: bool,
}

impl Wanted {
    /// Without any check of sources.
    pub fn plain(name: &str, role: Role) -> Self {
        Self { name: name.to_owned(), role, reverse_path: ReversePath::Off, drops_bogons: false }
    }
}

/// What is to be served, whether the host has it or not.
pub(super) fn choose(config: &Config, facts: &HostFacts, notices: &mut Vec<String>) -> Vec<Wanted> {
    if config.interfaces.is_empty() {
        return choose_by_route(facts, notices);
    }
    let wanted = config.interfaces.iter().map(|interface| Wanted {
        name: interface.name.clone(),
        role: interface.role,
        reverse_path: interface.reverse_path,
        drops_bogons: interface.drops_bogons,
    });
    wanted.collect()
}

fn choose_by_route(facts: &HostFacts, notices: &mut Vec<String>) -> Vec<Wanted> {
    let mut links: Vec<&Link> = facts.links.iter().filter(|link| is_candidate(link)).collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    let routes = [facts.default_route_v4, facts.default_route_v6].into_iter().flatten();
    let outside = routes.filter_map(|ifindex| links.iter().find(|link| link.ifindex == ifindex)).next().copied();
    let why = "The config names no [[interface]]";
    match (links.as_slice(), outside) {
        ([], _) => {
            notices
                .push(format!("{why} and the host has no Ethernet interface that is up, so nothing is forwarded yet."));
            Vec::new()
        }
        ([only], _) => {
            notices.push(format!("{why} and {} is the only one of the host, so it serves both sides.", only.name));
            vec![Wanted::plain(&only.name, Role::Both)]
        }
        (_, None) => {
            let names = list_text(links.iter().map(|link| &link.name));
            notices.push(format!(
                "{why} and no default route leaves by one of {names}, so it is not known which one is outside and \
                 nothing is forwarded yet; name them in the config or add a default route."
            ));
            Vec::new()
        }
        (_, Some(outside)) => {
            let role = |link: &Link| if link.ifindex == outside.ifindex { Role::Outside } else { Role::Inside };
            let inside = list_text(links.iter().filter(|link| role(link) == Role::Inside).map(|link| &link.name));
            notices.push(format!(
                "{why}, so {} with the default route is outside and all others are inside: {inside}.",
                outside.name
            ));
            links.iter().map(|link| Wanted::plain(&link.name, role(link))).collect()
        }
    }
}

fn is_candidate(link: &Link) -> bool {
    link.up && !link.loopback && link.mac.is_some()
}

/// Finds what is wanted on the host.
pub(super) fn find(
    wanted: &[Wanted],
    facts: &HostFacts,
    notices: &mut Vec<String>,
) -> (Vec<PlannedInterface>, Vec<MissingInterface>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (slot, wanted) in (0..).zip(wanted) {
        match find_one(slot, wanted, &facts.links) {
            Ok((interface, link)) => {
                if !link.up {
                    notices.push(format!("{} is down, so nothing passes there until it is up.", link.name));
                }
                found.push(interface);
            }
            Err(why) => missing.push(MissingInterface { name: wanted.name.clone(), role: wanted.role, why }),
        }
    }
    (found, missing)
}

fn find_one<'a>(slot: u32, wanted: &Wanted, links: &'a [Link]) -> Result<(PlannedInterface, &'a Link), String> {
    let Some(link) = links.iter().find(|link| link.name == wanted.name) else {
        return Err("the host has no interface of this name now; it is served as soon as it comes".to_owned());
    };
    if link.loopback {
        return Err("it is the loopback interface; remove it from the config".to_owned());
    }
    let Some(mac) = link.mac else {
        return Err("it is not Ethernet; only interfaces with an Ethernet address can be served".to_owned());
    };
    if link.ifindex == 0 || link.ifindex > u16::MAX.into() {
        let index = link.ifindex;
        return Err(format!("its index {index} is not one of 1 to {}; create it again after a reboot", u16::MAX));
    }
    let slot = u8::try_from(slot).ok().filter(|slot| u32::from(*slot) < MAX_IFACES);
    let slot =
        slot.ok_or_else(|| format!("{MAX_IFACES} others are served already; name those that matter in the config"))?;
    let side = wanted.role.side();
    let config = IfaceConfig {
        mac,
        side: side as u8,
        slot,
        address4: link.addresses_v4.first().map_or(Ipv4Addr::UNSPECIFIED, |net| net.addr()).octets(),
        address6: global_v6(link).unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
        mtu: link.mtu,
    };
    Ok((PlannedInterface { name: link.name.clone(), ifindex: link.ifindex, side, slot, config }, link))
}

/// The first address that others than the neighbours can answer to.
fn global_v6(link: &Link) -> Option<Ipv6Addr> {
    let local = |address: &Ipv6Addr| {
        address.is_unicast_link_local() || address.is_loopback() || address.is_multicast() || address.is_unspecified()
    };
    link.addresses_v6.iter().map(|net| net.addr()).find(|address| !local(address))
}
