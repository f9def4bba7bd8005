//! One forwarder in a network namespace: two would fight for its interfaces, sysctls and ports.
//!
//! The lock is a listening unix socket with an abstract name (unix(7)). Such names belong to the network namespace,
//! just as what they protect does, and vanish with the process however it ends, so that nothing stale is ever in the
//! way. Nothing is ever sent: whoever finds the name taken connects only to learn the holder's process id.

use super::{HostError, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd};

const NAME: &[u8] = b"forwarder-datapath";

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _socket: OwnedFd,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn take() -> Result<Self> {
        match try_take() {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(Errno::EADDRINUSE) => Err(HostError::AlreadyRuns { process: read_holder() }),
            Err(errno) => Err(HostError::Lock(errno.into())),
        }
    }
}

fn try_take() -> nix::Result<OwnedFd> {
    let socket = open()?;
    bind(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME)?)?;
    // Only of a listening socket does the kernel tell the owner to who connects.
    listen(&socket, Backlog::new(1)?)?;
    Ok(socket)
}

/// The holder's process id; `None` if it has just ended, too many have asked (the connections wait in its queue), or it
/// lives in a process namespace that we do not see.
fn read_holder() -> Option<i32> {
    let socket = open().ok()?;
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME).ok()?).ok()?;
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    Some(credentials.pid()).filter(|process| *process > 0)
}

fn open() -> nix::Result<OwnedFd> {
    // Non-blocking, or a full queue would hold up who asks for the owner.
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Netns;
    use super::*;

    #[test]
    fn one_a_namespace() {
        let (one, other) = (Netns::new(), Netns::new());
        let lock = one.enter(|| Lock::take().unwrap());
        let own = i32::try_from(std::process::id()).unwrap();
        for _ in 0..5 {
            let error = one.enter(|| Lock::take().unwrap_err());
            let HostError::AlreadyRuns { process } = &error else { panic!("{error:?}") };
            assert!(process.is_none_or(|process| process == own), "{error}");
            assert!(error.to_string().contains("runs in this network namespace"), "{error}");
        }
        drop(other.enter(|| Lock::take().unwrap()));
        drop(lock);
        let lock = one.enter(|| Lock::take().unwrap());
        let first = one.enter(|| Lock::take().unwrap_err());
        assert!(first.to_string().contains(&format!("(process {own})")), "{first}");
        drop(lock);
    }
}
