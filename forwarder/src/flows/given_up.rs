//! Packets that the controller itself drops, because their next hop never answered: kept until the sweeper's next pass takes
//! them to flow logs. The datapath held them before any flow counted them, so they are refused packets like its own.

use crate::datapath::Held;
use crate::flowlog::refused::RefusedCount;
use crate::record::Tuple;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use forwarder_ebpf::abi::logged_flags;
use std::net::IpAddr;
use std::time::Instant;

/// How many are kept; the controller holds less than that at a time, and passes come every few seconds.
const MOST: usize = 1 << 17;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its ends.
    pub tuple: Tuple,
    /// IP protocol.
    pub protocol: u8,
    /// Index of the interface that it came by.
    pub ingress: u32,
    /// IP packet, bytes.
    pub bytes: u64,
    /// As AWS counts them.
    pub tcp_flags: u8,
    /// When it was given up.
    pub at: Instant,
}

/// Those that no pass has taken yet.
#[derive(Debug, Default)]
pub struct GivenUps {
    packets: Vec<GivenUp>,
    /// There was no room for so many, or they could not be read.
    lost: u64,
}

impl GivenUps {
    /// Notes frames that are dropped now.
    pub fn add(&mut self, frames: &[Held], now: Instant) {
        for held in frames {
            match read(held, now) {
                Some(packet) if self.packets.len() < MOST => self.packets.push(packet),
                _ => self.lost += 1,
            }
        }
    }
}

impl Iterator for GivenUps {
    type Item = GivenUp;

    fn next(&mut self) -> Option<GivenUp> {
        self.packets.pop()
    }
}

impl GivenUps {
    /// Packets that there is nothing known of.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl GivenUp {
    /// As a count of one. `ticks_of` says what the datapath's clock was at a time.
    pub fn count(&self, ticks_of: impl Fn(Instant) -> u32) -> RefusedCount {
        let ticks = ticks_of(self.at);
        RefusedCount { packets: 1, bytes: self.bytes, tcp_flags: self.tcp_flags, first: ticks, last: ticks }
    }
}

/// The packet in a frame; later fragments have no ports.
fn read(held: &Held, at: Instant) -> Option<GivenUp> {
    let packet = LaxSlicedPacket::from_ethernet(&held.frame).ok()?;
    let (source, destination, protocol, bytes): (IpAddr, IpAddr, _, _) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let protocol = header.protocol().0;
            (header.source_addr().into(), header.destination_addr().into(), protocol, u64::from(header.total_len()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let bytes = header.slice().len() as u64 + u64::from(header.payload_length());
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number.0, bytes)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let (source_port, destination_port, tcp_flags) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let bits = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack()];
            let signal = (0..).zip(bits).fold(0, |signal, (at, bit)| signal | u8::from(bit) << at);
            (tcp.source_port(), tcp.destination_port(), logged_flags(signal) as u8)
        }
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), 0),
        _ => (0, 0, 0),
    };
    let tuple = Tuple { source, destination, source_port, destination_port };
    Some(GivenUp { tuple, protocol, ingress: held.ingress, bytes, tcp_flags, at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn held(frame: Vec<u8>) -> Held {
        Held { ingress: 7, egress: 8, next_hop: [192, 0, 2, 1].into(), frame }
    }

    fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2([2; 6], [4; 6])
    }

    #[test]
    fn packets_are_read_as_the_datapath_would_count_them() {
        let (mut syn, mut udp) = (Vec::new(), Vec::new());
        let step = ethernet().ipv4([10, 0, 0, 1], [192, 0, 2, 1], 64).tcp(40_000, 443, 1, 1000).syn();
        step.write(&mut syn, &[]).expect("room");
        syn.resize(60, 0);
        ethernet().ipv6([1; 16], [2; 16], 64).udp(1, 2).write(&mut udp, &[0; 12]).expect("room");
        let mut all = GivenUps::default();
        all.add(&[held(syn), held(udp), held(vec![0; 60])], Instant::now());
        assert_eq!(all.lost(), 1);
        let (udp, syn) = (all.next().expect("IPv6"), all.next().expect("IPv4"));
        assert_eq!((syn.protocol, syn.bytes, syn.tcp_flags, syn.ingress), (6, 40, 2, 7), "padding is no packet");
        assert_eq!((syn.tuple.source, syn.tuple.destination_port), ([10, 0, 0, 1].into(), 443));
        assert_eq!((udp.protocol, udp.bytes, udp.tuple.source_port), (17, 60, 1));
        assert_eq!(syn.count(|_| 9), RefusedCount { packets: 1, bytes: 40, tcp_flags: 2, first: 9, last: 9 });
    }
}
