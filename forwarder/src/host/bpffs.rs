//! A BPF file system for the pins that let the datapath outlive the process.
//!
//! systemd mounts one at /sys/fs/bpf at boot; containers and small systems often have none. Mind that `ip netns exec`
//! makes a new mount namespace with a new /sys: pins made there are gone when the command ends, so use `nsenter --net`.

use super::{HostError, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another may take to mount it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is in a fresh one, if the kernel has CONFIG_BPF_PRELOAD.
const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// A directory that is a BPF file system. As long as there is such a value, of whichever process, the others leave it mounted.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
    is_own: bool,
    /// Its root: held open, it cannot be unmounted.
    root: File,
}

impl Bpffs {
    /// Where it usually is.
    pub const USUAL: &str = "/sys/fs/bpf";

    /// Mounts a BPF file system on a directory, unless it is one already.
    ///
    /// # Errors
    /// When the directory does not exist, the kernel refuses, or somebody keeps the directory locked.
    pub fn mount(path: &Path) -> Result<Self> {
        if let Some(found) = Self::left_behind(path)? {
            return Ok(Self { is_own: false, ..found });
        }
        let _alone = lock(path)?;
        let mut is_own = false;
        loop {
            if let Some(found) = Self::left_behind(path)? {
                return Ok(Self { is_own, ..found });
            }
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"))
                .map_err(|errno| HostError::file("mount a BPF file system on", path, errno))?;
            tracing::info!(
                "mounted a BPF file system on {}: there was none, and the datapath is kept in it",
                path.display()
            );
            is_own = true;
        }
    }

    /// The one on a directory, if there is any, as if this value had mounted it: for who knows that a process did which was
    /// killed before it could unmount it.
    ///
    /// # Errors
    /// When the directory does not exist, or cannot be read.
    pub fn left_behind(path: &Path) -> Result<Option<Self>> {
        let root = File::open(path).map_err(|error| HostError::file("open", path, error))?;
        let found = fstatfs(&root).map_err(|errno| HostError::file("examine", path, errno))?;
        let is_one = found.filesystem_type() == BPF_FS_MAGIC;
        Ok(is_one.then(|| Self { path: path.to_owned(), is_own: true, root }))
    }

    /// Whether this value mounted it.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Unmounts it if this value mounted it and nothing is in it any more: neither our pins nor somebody else's. One
    /// that an earlier process mounted stays, for nobody knows who relies on it by now.
    ///
    /// # Errors
    /// When it cannot be read, or the kernel refuses for another reason than that it is in use.
    pub fn unmount_if_unused(self) -> Result<()> {
        if !self.is_own {
            return Ok(());
        }
        if !self.is_empty().map_err(|error| HostError::file("list", &self.path, error))? {
            tracing::info!("left the BPF file system on {} mounted: something is pinned there", self.path.display());
            return Ok(());
        }
        drop(self.root);
        match umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => tracing::info!("unmounted the BPF file system on {}, as it was before", self.path.display()),
            Err(Errno::EBUSY) => {
                tracing::info!("left the BPF file system on {} mounted: somebody uses it", self.path.display());
            }
            Err(errno) => return Err(HostError::file("unmount", &self.path, errno)),
        }
        Ok(())
    }

    fn is_empty(&self) -> std::io::Result<bool> {
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if KERNELS_OWN.iter().all(|own| name != *own) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Of several processes that find none at the same time one mounts it, and the others then find it: who has the lock of the
/// directory that it is to cover.
fn lock(path: &Path) -> Result<Flock<File>> {
    let begun = Instant::now();
    let mut directory = File::open(path).map_err(|error| HostError::file("open", path, error))?;
    loop {
        directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((directory, Errno::EWOULDBLOCK)) if begun.elapsed() < PATIENCE => directory,
            Err((_, errno)) => return Err(HostError::file("lock", path, errno)),
        };
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    /// On a thread with a mount namespace of its own, so that a mount that a failed test leaves goes with it.
    fn in_own_mounts(inside: impl FnOnce() + Send) {
        let entered = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("mount namespaces need root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            inside();
        };
        std::thread::scope(|scope| scope.spawn(entered).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    #[test]
    fn mounts_once_and_unmounts_when_empty() {
        in_own_mounts(mount_and_unmount);
    }

    fn mount_and_unmount() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let magic = || nix::sys::statfs::statfs(path).unwrap().filesystem_type();
        let own = Bpffs::mount(path).unwrap();
        assert!(own.is_own() && magic() == BPF_FS_MAGIC);
        let found = Bpffs::mount(path).unwrap();
        assert!(!found.is_own());
        found.unmount_if_unused().unwrap();
        assert_eq!(magic(), BPF_FS_MAGIC);

        let made = || Bpffs::left_behind(path).unwrap().unwrap();
        std::fs::create_dir(path.join("pins")).unwrap();
        own.unmount_if_unused().unwrap();
        assert_eq!(magic(), BPF_FS_MAGIC, "something is pinned");
        std::fs::remove_dir(path.join("pins")).unwrap();
        let another = Bpffs::mount(path).unwrap();
        made().unmount_if_unused().unwrap();
        assert_eq!(magic(), BPF_FS_MAGIC, "another is about to pin something");
        drop(another);
        made().unmount_if_unused().unwrap();
        assert_ne!(magic(), BPF_FS_MAGIC);
        assert!(Bpffs::left_behind(path).unwrap().is_none());
    }

    #[test]
    fn of_many_at_once_one_mounts() {
        in_own_mounts(|| {
            let directory = tempfile::tempdir().unwrap();
            for _ in 0..200 {
                let together = std::sync::Barrier::new(8);
                let mount = || {
                    together.wait();
                    Bpffs::mount(directory.path()).unwrap()
                };
                let all: Vec<_> = std::thread::scope(|scope| {
                    let all = [(); 8].map(|()| scope.spawn(mount));
                    all.into_iter().map(|one| one.join().unwrap()).collect()
                });
                let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
                let path = directory.path().to_str().unwrap();
                assert_eq!(mounts.matches(path).count(), 1, "{mounts}");
                assert_eq!(all.iter().filter(|one| one.is_own()).count(), 1);
                drop(all);
                // Also while a child of another test still has a copy of a descriptor.
                umount2(directory.path(), MntFlags::MNT_DETACH).unwrap();
            }
        });
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Bpffs::mount(Path::new("/nowhere/bpf")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /nowhere/bpf");
    }
}
