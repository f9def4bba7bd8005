//! Ethernet frames for tests: built ([`Packet`]), checked ([`verify_checksums`]), read back ([`Summary`], [`describe`]).
//!
//! The builder stands on etherparse; the checker is written on its own, so a mistake in one does not hide in the other.
//! Nothing here needs root.

mod build;
mod check;
mod fragment;
mod summary;

pub use build::Packet;
pub use check::verify_checksums;
pub use fragment::fragment;
pub use summary::{Summary, describe};

/// Flags of a TCP segment, as bits of its 14th byte (RFC 9293, 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// IP protocol numbers (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// IPsec encapsulating security payload.
    pub const ESP: u8 = 50;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Length of an Ethernet header in bytes.
pub const ETHERNET: usize = 14;

/// The IP packet in `frame`, without Ethernet header and trailing padding; what an ICMP error quotes.
///
/// Empty when the frame is not IP or shorter than its headers say.
pub fn ip_packet(frame: &[u8]) -> &[u8] {
    let ip = frame.get(ETHERNET..).unwrap_or_default();
    let length = match ip.first().map(|byte| byte >> 4) {
        Some(4) if ip.len() >= 20 => usize::from(u16::from_be_bytes([ip[2], ip[3]])),
        Some(6) if ip.len() >= 40 => 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])),
        _ => 0,
    };
    ip.get(..length).unwrap_or_default()
}

/// The first `bytes` of the IP packet in `frame`, or all of it: what a router that quotes sparingly puts into an ICMP error.
pub fn quote(frame: &[u8], bytes: usize) -> &[u8] {
    let packet = ip_packet(frame);
    &packet[..bytes.min(packet.len())]
}
