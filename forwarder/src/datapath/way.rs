//! The way of a packet, as the datapath itself asks the kernel's FIB for it.

use super::load::WAY;
use super::run::Action;
use super::{Datapath, DatapathError, Result};
use forwarder_ebpf::abi::{WayAnswer, WayQuestion, tend};
use forwarder_ebpf::tables::Route;
use std::net::IpAddr;
use zerocopy::{FromBytes, IntoBytes};

/// What the program returns, 1, as an action.
const ANSWERED: Action = Action::Drop;

/// The way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What the FIB says.
    pub route: Route,
    /// Who gets it next: the destination itself, or a gateway. Means something where the route leads on.
    pub next_hop: IpAddr,
}

impl Datapath {
    /// What the kernel's FIB says of a packet's way, asked just as the datapath asks.
    ///
    /// # Errors
    /// When the kernel refuses, as it does when there is no such interface.
    pub fn way(&self, ingress: u32, source: IpAddr, destination: IpAddr, protocol: u8) -> Result<Way> {
        let family = if destination.is_ipv4() { 4 } else { 6 };
        let [source, destination] = [source, destination].map(in_place);
        let question = WayQuestion { source, destination, family, protocol, zero: [0; 2] };
        let frame = [&[0; tend::HEADER], question.as_bytes()].concat();
        let ran = self.run_program(WAY, Some(ingress), &frame, 1)?;
        let answer = ran.frame.get(tend::HEADER..).and_then(|bytes| WayAnswer::read_from_prefix(bytes).ok());
        let Some((answer, _)) = answer.filter(|_| ran.action == ANSWERED) else {
            return Err(DatapathError::Run("the program `way` has not answered".into()));
        };
        let next_hop = match answer.next_hop {
            [a, b, c, d, ..] if answer.family == 4 => [a, b, c, d].into(),
            octets => octets.into(),
        };
        Ok(Way { route: answer.route(), next_hop })
    }
}

/// An address in a place for either family.
fn in_place(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut place = [0; 16];
            place[..4].copy_from_slice(&address.octets());
            place
        }
        IpAddr::V6(address) => address.octets(),
    }
}
