//! The kernel's FIB, asked as the datapath asks it.

use super::load::FIB;
use super::run::Action;
use super::{Datapath, DatapathError, Result};
use forwarder_ebpf::abi::{FibAnswer, FibQuestion, tend};
use forwarder_ebpf::tables::{Fate, Route};
use std::net::IpAddr;
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

/// What the program returns, 1, as an action.
const ANSWERED: Action = Action::Drop;

/// What the FIB says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The route.
    pub route: Route,
    /// Who gets it next: the destination itself, or a gateway. Means something where the route leads on.
    pub next_hop: IpAddr,
}

impl Datapath {
    /// What the kernel's FIB says of a packet that comes by an interface, asked as the datapath asks, of the default class.
    ///
    /// # Errors
    /// When the kernel refuses, as it does when there is no such interface.
    pub fn ask_fib(&self, ingress: u32, source: IpAddr, destination: IpAddr, protocol: u8) -> Result<Routed> {
        let family = if destination.is_ipv4() { 4 } else { 6 };
        let [source, destination] = [source, destination].map(in_place);
        let question = FibQuestion { source, destination, family, protocol, zero: [0; 2] };
        let frame = [&[0; tend::HEADER], question.as_bytes()].concat();
        let ran = self.run_program(FIB, Some(ingress), &frame, 1)?;
        let answer = ran.frame.get(tend::HEADER..).and_then(|bytes| FibAnswer::read_from_prefix(bytes).ok());
        let Some((answer, _)) = answer.filter(|_| ran.action == ANSWERED) else {
            return Err(DatapathError::Run("the program `fib` has not answered".into()));
        };
        let next_hop = match answer.next_hop {
            [a, b, c, d, ..] if answer.family == 4 => [a, b, c, d].into(),
            octets => octets.into(),
        };
        let fate = Fate::try_read_from_bytes(&[answer.fate]).unwrap_or(Fate::NotForwarded);
        let (ifindex, mtu) = (u32::from_ne_bytes(answer.ifindex), u16::from_ne_bytes(answer.mtu));
        Ok(Routed { route: Route { fate, ifindex, mac: answer.mac, mtu }, next_hop })
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
