//! Headers as bytes: offsets, parsing into small values, checksums. No state and no policy.
//!
//! Fields of network order stay byte arrays; 16-bit words for checksums are read in the machine's order, which the
//! ones' complement sum does not mind (RFC 1071 §2 (B)).

pub mod checksum;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;

/// Length of the Ethernet header. VLAN tags are not ours.
pub const ETHERNET: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Bytes at a fixed place of a header. `None` only when they do not lie in it, which the compiler sees.
///
/// Always by this, and not byte by byte: an array that is put together from single bytes stays so, and each becomes a load,
/// a spill and a store of its own. Copy at most eight at once; more become single bytes again, as packets are not aligned.
#[inline(always)]
pub fn take<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..at + N)?.try_into().ok()
}

/// Writes bytes at a fixed place of a header; see `take`.
#[inline(always)]
pub fn put<const N: usize>(header: &mut [u8], at: usize, bytes: [u8; N]) -> Option<()> {
    *<&mut [u8; N]>::try_from(header.get_mut(at..at + N)?).ok()? = bytes;
    Some(())
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP, whose checksum covers the addresses.
    pub const DCCP: u8 = 33;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// UDP-Lite, whose checksum covers the addresses.
    pub const UDPLITE: u8 = 136;
}

/// TCP flags (RFC 9293 §3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 0x10;
    /// Those that flow state looks at.
    pub const TRACKED: u8 = FIN | SYN | RST | ACK;
}

/// What stands behind the IP header, as far as forwarding cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo request; its identifier stands for the port.
    Echo,
    /// The reply to one.
    EchoReply,
    /// An ICMP or ICMPv6 error, with the packet it is about.
    Error,
    /// Any other ICMP or ICMPv6 message.
    Control,
    /// A protocol whose checksum at offset 6 covers the addresses, but whose ports are not looked at.
    Pseudo,
    /// Anything else, and all fragments but the first.
    Opaque,
}

/// Place of a packet in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first of several: it has the transport header.
    First,
    /// One of the others.
    Later,
}
