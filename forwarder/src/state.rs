//! The instance's directory in /run: the control socket, and the lock that keeps a second process of the same name out.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process of this name.
    #[error("instance `{0}` runs already: stop it first, or name this one with --instance")]
    Taken(String),
    /// The file system refuses.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The directory, ours while this value lives.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDirectory {
    /// Name of the control socket in it.
    pub const SOCKET: &'static str = "control.sock";
    /// Name of the file in it that remembers which firewall rule has which counter.
    pub const RULES: &'static str = "rules.json";
    /// Name of the file in it that remembers how sets were changed.
    pub const SETS: &'static str = "sets.json";
    /// Name of the file in it that remembers the host's sysctls.
    pub const SYSCTLS: &'static str = "sysctls.json";

    /// Where an instance's directory is.
    pub fn path_of(instance: &str) -> PathBuf {
        Path::new("/run").join(instance)
    }

    /// Makes the directory and takes its lock. What an earlier process left in it stays.
    ///
    /// # Errors
    /// When another process has the lock, or the file system refuses.
    pub fn take(instance: &str) -> Result<Self, StateError> {
        let path = Self::path_of(instance);
        let failed = |action, path: &Path, source| StateError::File { action, path: path.to_owned(), source };
        fs::create_dir_all(&path).map_err(|source| failed("make", &path, source))?;
        let lock = path.join("lock");
        let file = File::create(&lock).map_err(|source| failed("make", &lock, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateError::Taken(instance.to_owned())),
            Err((_, errno)) => Err(failed("lock", &lock, errno.into())),
        }
    }

    /// Itself.
    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(self) -> Result<(), StateError> {
        fs::remove_dir_all(&self.path).map_err(|source| StateError::File { action: "remove", path: self.path, source })
    }
}
