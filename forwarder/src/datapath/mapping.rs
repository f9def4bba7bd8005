//! The kernel's memory of an array map, mapped into ours (`BPF_F_MMAPABLE`).
#![expect(unsafe_code, reason = "mmap(2), and references into what it returns; see the SAFETY notes")]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use zerocopy::FromBytes;

/// Elements of an array map, in place: of a multiple of eight bytes, as the kernel lays them out. What changes in them is atomic, or published as `forwarder_ebpf::flow_table` says.
#[derive(Debug)]
pub struct Mapping<T> {
    base: NonNull<libc::c_void>,
    bytes: usize,
    first: NonNull<T>,
    count: usize,
}

// SAFETY: it is no more than a shared slice of `T`, which lives until it is dropped.
unsafe impl<T: Sync> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: FromBytes> Mapping<T> {
    const IS_LAID_OUT_ALIKE: () = assert!(size_of::<T>().is_multiple_of(8));

    /// `count` elements from `begin` on, to look at. The map's values have to be `T`s.
    pub fn readable(map: BorrowedFd<'_>, begin: usize, count: usize) -> io::Result<Self> {
        Self::new(map, begin, count, libc::PROT_READ)
    }

    /// The first `count` elements, to change as well.
    pub fn writable(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        Self::new(map, 0, count, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn new(map: BorrowedFd<'_>, begin: usize, count: usize, protection: i32) -> io::Result<Self> {
        const { Self::IS_LAID_OUT_ALIKE };
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.map_or(4096, |size| size as usize);
        let from = begin * size_of::<T>();
        let offset = from / page * page;
        let bytes = from - offset + count * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: `from - offset` is less than a page, and the mapping has that and `count` elements behind it.
        let first = unsafe { base.byte_add(from - offset) }.cast();
        Ok(Self { base, bytes, first, count })
    }
}

impl<T> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has `count` elements from `first` on, aligned because pages and strides are; any bytes are a
        // `T` (`FromBytes`); it lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, whole, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr(), self.bytes) };
    }
}
