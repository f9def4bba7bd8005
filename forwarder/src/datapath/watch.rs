//! File descriptors that tokio waits for.
#![expect(unsafe_code, reason = "tokio asks for a promise about the descriptor; see the SAFETY note")]

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Has the current runtime watch a descriptor.
///
/// # Errors
/// When it cannot be watched (epoll_ctl(2)).
///
/// # Panics
/// Outside a runtime with I/O.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as it lives, and it moves into the `AsyncFd`.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
