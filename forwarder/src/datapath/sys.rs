//! bpf(2) for map elements, single and in batches, and for ending links. aya has neither batches nor that, and its typed
//! maps need `Pod` on types that are not ours to implement it for; here `zerocopy` is the proof that bytes are values.
#![expect(unsafe_code, reason = "one system call; see the SAFETY notes")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Commands of bpf(2) used here (linux/bpf.h, `enum bpf_cmd`).
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// `BPF_MAP_CREATE`
    Create = 0,
    /// `BPF_MAP_LOOKUP_ELEM`
    Lookup = 1,
    /// `BPF_MAP_UPDATE_ELEM`
    Update = 2,
    /// `BPF_MAP_DELETE_ELEM`
    Delete = 3,
    /// `BPF_PROG_TEST_RUN`
    Run = 10,
    /// `BPF_OBJ_GET_INFO_BY_FD`
    Info = 15,
    /// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`
    Take = 21,
    /// `BPF_MAP_LOOKUP_BATCH`
    LookupBatch = 24,
    /// `BPF_MAP_UPDATE_BATCH`
    UpdateBatch = 26,
    /// `BPF_LINK_GET_FD_BY_ID`
    OpenLink = 30,
    /// `BPF_LINK_DETACH`
    DetachLink = 34,
}

/// The element commands' part of `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` of `BPF_MAP_CREATE`, as far as it is used.
#[repr(C)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The batch commands' part of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `struct bpf_map_info` as far as it is of use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Kernel's number of the map.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Room for so many.
    pub max_entries: u32,
    /// Flags it was made with.
    pub flags: u32,
}

/// The part of `union bpf_attr` of `BPF_LINK_GET_FD_BY_ID`.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The part of `union bpf_attr` of `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkAttr {
    fd: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// Returns what the system call does: a new descriptor for `Command::OpenLink`, 0 for all others.
fn bpf<T>(command: Command, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the structures above, laid out as the command's part of `union bpf_attr`, and its size is
    // passed along. The pointers in it were made from borrowed slices by the callers below, which check that the kernel
    // writes no more bytes than the slices have.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// The run command's part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program_fd: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs an XDP program once on a frame, and returns what it returns.
pub fn run_program(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attr = RunAttr {
        program_fd: descriptor(program),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..RunAttr::default()
    };
    bpf(Command::Run, &mut attr)?;
    Ok(attr.result)
}

/// Waits for an RCU grace period (membarrier(2), `MEMBARRIER_CMD_GLOBAL`): programs run inside of RCU's read side. With one
/// CPU there is nothing to wait for: a program there is not interrupted by us.
pub fn wait_for_readers() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: it takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel says of a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = InfoAttr {
        fd: descriptor(map),
        length: size_of::<MapInfo>() as u32,
        info: info.as_mut_bytes().as_mut_ptr() as u64,
    };
    bpf(Command::Info, &mut attr)?;
    Ok(info)
}

/// Looks up, or takes out, one element. `value` must have the bytes of a value of the map (for per-CPU maps, of all CPUs).
pub fn read_element(command: Command, map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let (key, value) = (key.as_ptr() as u64, value.as_mut_ptr() as u64);
    bpf(command, &mut ElementAttr { map_fd: descriptor(map), zero: 0, key, value, flags: 0 }).map(drop)
}

/// Writes one element.
pub fn update_element(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
    bpf(Command::Update, &mut ElementAttr { map_fd: descriptor(map), zero: 0, key, value, flags }).map(drop)
}

/// Removes one element.
pub fn delete_element(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    bpf(
        Command::Delete,
        &mut ElementAttr { map_fd: descriptor(map), zero: 0, key: key.as_ptr() as u64, value: 0, flags: 0 },
    )
    .map(drop)
}

/// Has a link's program run no more, at once and whoever else holds the link. One whose interface is gone is fine.
pub fn detach_link(id: u32) -> io::Result<()> {
    let number = bpf(Command::OpenLink, &mut IdAttr { id, next_id: 0, open_flags: 0 })?;
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(number) };
    bpf(Command::DetachLink, &mut LinkAttr { fd: descriptor(link.as_fd()) }).map(drop)
}

/// Makes an array for the inside of a map of maps that take arrays of any length (`BPF_F_INNER_MAP`).
pub fn create_policy(value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    const ANY_LENGTH: u32 = 1 << 12;
    let made =
        bpf(Command::Create, &mut CreateAttr { kind: ARRAY, key_size: 4, value_size, max_entries, flags: ANY_LENGTH })?;
    let descriptor = RawFd::try_from(made).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Writes `count` elements; `keys` and `values` must have that many of the map.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map_fd: descriptor(map),
        elem_flags: 0,
        flags: 0,
    };
    bpf(Command::UpdateBatch, &mut attr).map(drop)
}

/// Where a batch ended; the next one begins there.
pub type Cursor = u32;

/// What one batch brought.
pub struct Batch {
    /// Elements in the buffers.
    pub count: usize,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Looks up as many elements as the buffers take, from `from` on. `keys` and `values` must have the bytes of `most` keys
/// and values of the map.
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    keys: &mut [u8],
    values: &mut [u8],
    most: usize,
) -> io::Result<Batch> {
    let (mut start, mut end): (Cursor, Cursor) = (from.unwrap_or(0), 0);
    let mut attr = BatchAttr {
        in_batch: if from.is_some() { start.as_mut_bytes().as_mut_ptr() as u64 } else { 0 },
        out_batch: end.as_mut_bytes().as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: most as u32,
        map_fd: descriptor(map),
        elem_flags: 0,
        flags: 0,
    };
    match bpf(Command::LookupBatch, &mut attr) {
        Ok(_) => Ok(Batch { count: attr.count as usize, next: Some(end) }),
        // The end; `count` elements came with it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(Batch { count: attr.count as usize, next: None })
        }
        Err(error) => Err(error),
    }
}
