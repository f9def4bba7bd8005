//! A packet socket: sends frames as they are, by any interface, past the kernel's own routing.
#![expect(unsafe_code, reason = "an address of a family that nix cannot make; see the SAFETY notes")]

use super::{DatapathError, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Sends only: protocol 0 receives nothing (packet(7)).
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one in the current network namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open() -> Result<Self> {
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
            .map(Self)
            .map_err(|errno| DatapathError::Send(errno.into()))
    }

    /// Sends a frame, Ethernet header first.
    ///
    /// # Errors
    /// When the interface is gone or down, or its queue is full.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: ifindex.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: both pointers are to live memory of the lengths passed with them, which the kernel only reads.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(DatapathError::Send(io::Error::last_os_error())) } else { Ok(()) }
    }
}
