//! What the benchmark's generator, sink and bare redirect share with `forwarder-bench`. No part of the appliance.
//!
//! A flow is a number. Everything in its packets follows from it, so that the sink knows what has to arrive:
//!
//! | field | from bits of the number | forward (client to server) | backward |
//! | --- | --- | --- | --- |
//! | client | a hash of all; of one host: none | source | destination |
//! | client's port | low 15 | source port | destination port |
//! | server | the rest; of one host: none | destination | source |
//! | server's port | none, it is 9; of one host: the rest | destination port | source port |
//!
//! So no two flows to one server and port have the same client's port, and a NAT that keeps ports where it can keeps all.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Begins the payload of every generated packet.
pub const LOAD_MAGIC: u32 = 0x6f77_6421;
/// Client's port of the flow 0.
pub const LOAD_FIRST_PORT: u16 = 2048;
/// Bits of a flow's number that choose the client's port.
pub const LOAD_PORT_BITS: u32 = 15;
/// The server's port, or the first of them: discard.
pub const LOAD_SERVER_PORT: u16 = 9;
/// The server's port whose packets the sink sends back: echo.
pub const LOAD_ECHO_PORT: u16 = 7;
/// IPv6 addresses end in the IPv4 ones; those of clients begin so.
pub const LOAD_CLIENTS6: [u8; 12] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
/// IPv6 addresses end in the IPv4 ones; those of servers begin so.
pub const LOAD_SERVERS6: [u8; 12] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];

/// Link-layer addresses that a frame gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoadStation {
    /// To whom.
    pub to: [u8; 6],
    /// From whom.
    pub from: [u8; 6],
}

/// What is generated and what has to arrive; the single value of `LOAD`. Directions: 0 forward, 1 backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadConfig {
    /// Flows; all are visited before any comes again.
    pub flows: u32,
    /// From one flow to the next, modulo `flows`: has no divisor in common with it.
    pub step: u32,
    /// Number of the first flow.
    pub first_flow: u32,
    /// 4 or 6.
    pub family: u32,
    /// Bit 0: generate forward, bit 1: backward. Both: in turn.
    pub directions: u32,
    /// Bytes of the frames as they are given to the generator, which cuts them to 60, 566 and 1,514 bytes, 7:4:1.
    /// 0: it sends them as they are.
    pub imix: u32,
    /// 1: the device translates clients to `public`.
    pub translated: u32,
    /// TTL or hop limit that has to arrive; 0: any.
    pub hops: u32,
    /// One frame in `stamp_mask + 1`, a power of two, carries the time. `u32::MAX`: none.
    pub stamp_mask: u32,
    /// Nanoseconds from one frame to the next; 0: as fast as the CPU can.
    pub interval_ns: u32,
    /// 1: one client and one server, told apart by ports; 0: many.
    pub one_host: u32,
    /// 1: the sink sends forward packets back as backward ones.
    pub reflect: u32,
    /// 1: TCP SYNs instead of UDP; IPv4, forward, and the sink only counts them.
    pub syn: u32,
    /// Zero.
    pub zero: u32,
    /// First client, a multiple of 2^16; or the client.
    pub clients: [u8; 4],
    /// First server, or the server.
    pub servers: [u8; 4],
    /// The device's public address.
    pub public: [u8; 4],
    /// Index of the device's interface towards the clients, for the bare redirect.
    pub bare_inside: u32,
    /// What generated frames get, by direction.
    pub stations: [LoadStation; 2],
    /// What the bare redirect gives to frames, by direction.
    pub bare: [LoadStation; 2],
}

/// The generator's memory of a direction, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadStream {
    /// Frames sent.
    pub sent: u64,
    /// When the next one is due, ns; of use with an interval.
    pub due_ns: u64,
    /// Number of the next flow, less `first_flow`.
    pub flow: u32,
    /// Runs; of the first stream only.
    pub turn: u32,
}

/// Frames of a direction that arrived. One CPU at a time writes: a veth with one queue has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadArrived {
    /// Frames with the magic.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those with an address, port or TTL that is not what it has to be.
    pub wrong: u64,
    /// Those that are right, but whose client's port the device changed.
    pub moved: u64,
    /// Those that came after one that was sent later.
    pub late: u64,
    /// Those that had come before, as far as the last 64 tell.
    pub duplicates: u64,
    /// Bit n: the frame number `highest - n` has come.
    pub window: u64,
    /// Highest number so far.
    pub highest: u32,
    /// How many of those wrong had their source address as it has to be.
    pub wrong_elsewhere: u32,
}

/// The walk through the cells that stand for the flow table; the single value of `WALK`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LoadWalk {
    /// Where it is.
    pub at: u64,
    /// Cells that are visited.
    pub flows: u32,
    /// Cells among which they lie.
    pub cells: u32,
}

/// Cells that one run visits.
pub const LOAD_ACCESSES: u32 = 200;

const _: () = assert!(size_of::<LoadStation>() == 12);
const _: () = assert!(size_of::<LoadConfig>() == 120);
const _: () = assert!(size_of::<LoadStream>() == 24);
const _: () = assert!(size_of::<LoadArrived>() == 64);

impl LoadConfig {
    /// The client's address, or its last four bytes.
    #[inline(always)]
    pub fn client(&self, flow: u32) -> [u8; 4] {
        if self.one_host != 0 {
            return self.clients;
        }
        // Fibonacci hashing: neighbouring flows have different clients.
        let [a, b, _, _] = self.clients;
        let [c, d, _, _] = flow.wrapping_mul(0x9e37_79b1).to_be_bytes();
        [a, b, c, d]
    }

    /// The server's address, or its last four bytes.
    #[inline(always)]
    pub fn server(&self, flow: u32) -> [u8; 4] {
        if self.one_host != 0 {
            return self.servers;
        }
        (u32::from_be_bytes(self.servers) + (flow >> LOAD_PORT_BITS)).to_be_bytes()
    }

    /// The server's port.
    #[inline(always)]
    pub fn server_port(&self, flow: u32) -> u16 {
        if self.one_host == 0 {
            return LOAD_SERVER_PORT;
        }
        LOAD_SERVER_PORT.wrapping_add((flow >> LOAD_PORT_BITS) as u16)
    }
}

/// The client's port.
#[inline(always)]
pub const fn load_port(flow: u32) -> u16 {
    LOAD_FIRST_PORT + (flow & ((1 << LOAD_PORT_BITS) - 1)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_flows_share_server_and_port() {
        let config = LoadConfig { servers: [198, 18, 0, 1], clients: [10, 64, 0, 0], ..LoadConfig::default() };
        let tuples: HashSet<_> = (0..100_000).map(|flow| (config.server(flow), load_port(flow))).collect();
        assert_eq!(tuples.len(), 100_000);
        let one = LoadConfig { one_host: 1, ..config };
        let tuples: HashSet<_> = (0..100_000).map(|flow| (one.server_port(flow), load_port(flow))).collect();
        assert_eq!((tuples.len(), one.client(7), one.server(99_999)), (100_000, [10, 64, 0, 0], [198, 18, 0, 1]));
        let clients: HashSet<_> = (0..100_000).map(|flow| config.client(flow)).collect();
        assert!(clients.len() > 50_000 && clients.iter().all(|client| client[..2] == [10, 64]));
    }
}
