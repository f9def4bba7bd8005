//! What has been logged of every flow entry, by its place in the flow table: so that a window is a subtraction, and exact.
//!
//! Kept in a file in the instance's directory (a file system in memory), a piece of it here at a time. A controller that is
//! killed leaves it, the flow table outlives the controller as well, and the next controller goes on where it ended. What
//! was on its way to a destination at that moment is declared lost, see `progress`.
//!
//! The order of writing is what makes nothing appear twice: a piece is written before the windows taken from it are handed on.

use super::clock::Moment;
use forwarder_ebpf::abi::Ticks;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Entries in memory at a time.
const PIECE: u32 = 8192;

/// What has been logged of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Line {
    packets: u64,
    bytes: u64,
    /// First packet of the open window, ticks; with `ENDED`, when the entry was made; else meaningless.
    first: Ticks,
    /// Flags that passes have seen.
    known: u8,
    /// `OPEN`, `SEEN`, `ENDED`.
    state: u8,
    /// Flags of the open window.
    flags: u8,
    /// Zero.
    zero: u8,
}

/// The window has packets.
const OPEN: u8 = 1;
/// A window of the entry has been taken before.
const SEEN: u8 = 2;
/// The entry has ended, and all of it was taken. Its slot is freed afterwards: a controller that is killed in between leaves it
/// to the next one, which must not take it again.
const ENDED: u8 = 4;

const _: () = assert!(size_of::<Line>() == 24);

/// An entry's counters at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Packets since it was made.
    pub packets: u64,
    /// Bytes since it was made.
    pub bytes: u64,
    /// TCP flags since it was made, as AWS counts them.
    pub tcp_flags: u8,
    /// Those that came once more since the pass before.
    pub again: u8,
    /// When it, or its latest reincarnation, was made.
    pub made: Ticks,
    /// Its last packet.
    pub last: Ticks,
}

/// What a window has of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Packets in the window.
    pub packets: u64,
    /// Bytes in the window.
    pub bytes: u64,
    /// Flags that came in the window.
    pub tcp_flags: u8,
    /// First packet in the window, as exact as passes are frequent.
    pub first: Ticks,
    /// The first window of this entry.
    pub begins: bool,
}

/// Two passes of the sweeper: a packet that the second sees first came in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    /// Ticks at the beginning of the one before.
    pub before: Ticks,
    /// This one.
    pub now: Moment,
}

/// The book of one flow table and one window length.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    lines: Vec<Line>,
    /// First entry of the piece in memory; `u32::MAX`: none is.
    from: u32,
    dirty: bool,
    /// Pieces that the file system had no room for, by their first entry. Without them what was logged would be logged again.
    unwritten: BTreeMap<u32, Vec<Line>>,
    error: Option<io::Error>,
}

impl Ledger {
    /// Opens the file, or makes it. `true`: it was there, with lines of an earlier controller.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        let known = path.exists();
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let lines = vec![Line::default(); PIECE as usize];
        let unwritten = BTreeMap::new();
        Ok((Self { file, lines, from: u32::MAX, dirty: false, unwritten, error: None }, known))
    }

    /// Opens one that begins with what there is: aside, until every entry is in it, because half of it would have the rest logged
    /// from its beginning. [`Ledger::settle`] then puts it in its place.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_aside(path: &Path) -> io::Result<Self> {
        let aside = path.with_extension("new");
        for old in [path, &aside] {
            match std::fs::remove_file(old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self::open(&aside)?.0)
    }

    /// Puts one that was opened aside in its place.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn settle(path: &Path) -> io::Result<()> {
        std::fs::rename(path.with_extension("new"), path)
    }

    /// A live entry in a pass. `close`: the window ends; what it has is then taken.
    pub fn observe(&mut self, slot: u32, counts: &Counts, pass: &Pass, close: bool) -> Option<Taken> {
        let line = self.line(slot);
        if line.state & ENDED != 0 {
            *line = Line::default();
        }
        let changed = line.update(counts, pass);
        let taken = if close { line.take(counts) } else { None };
        self.dirty |= changed || taken.is_some();
        taken
    }

    /// Counts what there is as logged: for entries that are older than this ledger.
    pub fn adopt(&mut self, slot: u32, counts: &Counts) {
        *self.line(slot) = Line::told(counts);
        self.dirty = true;
    }

    /// An entry that is about to be freed: takes the rest of it.
    pub fn end(&mut self, slot: u32, counts: &Counts, pass: &Pass) -> Option<Taken> {
        let line = self.line(slot);
        if line.state & ENDED != 0 && line.first != counts.made {
            *line = Line::default();
        }
        line.update(counts, pass);
        let taken = line.take(counts);
        *line = Line { state: SEEN | ENDED, first: counts.made, ..Line::told(counts) };
        self.dirty = true;
        taken
    }

    /// Writes what is in memory; before windows taken from it are handed on.
    ///
    /// # Errors
    /// When the file system refuses; what it does not take stays in memory.
    pub fn write(&mut self) -> io::Result<()> {
        self.put_back();
        while let Some(piece) = self.unwritten.first_entry() {
            if let Err(error) = self.file.write_all_at(piece.get().as_bytes(), Self::place(*piece.key())) {
                self.error = self.error.take().or(Some(error));
                break;
            }
            piece.remove();
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn line(&mut self, slot: u32) -> &mut Line {
        let from = slot - slot % PIECE;
        if from != self.from {
            self.put_back();
            self.fetch(from);
        }
        &mut self.lines[(slot - from) as usize]
    }

    fn put_back(&mut self) {
        if self.dirty {
            match self.file.write_all_at(self.lines.as_bytes(), Self::place(self.from)) {
                Ok(()) => drop(self.unwritten.remove(&self.from)),
                Err(error) => {
                    self.unwritten.insert(self.from, self.lines.clone());
                    self.error = self.error.take().or(Some(error));
                }
            }
            self.dirty = false;
        }
    }

    fn fetch(&mut self, from: u32) {
        if let Some(lines) = self.unwritten.get(&from) {
            self.lines.clone_from(lines);
            self.from = from;
            return;
        }
        self.lines.zero();
        let (bytes, mut have) = (self.lines.as_mut_bytes(), 0);
        // Shorter than asked for: it ends here, and what is behind the end is zeros.
        loop {
            match self.file.read_at(&mut bytes[have..], Self::place(from) + have as u64) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.error = self.error.take().or(Some(error));
                    break;
                }
            }
        }
        self.from = from;
    }

    fn place(slot: u32) -> u64 {
        u64::from(slot) * size_of::<Line>() as u64
    }
}

impl Line {
    /// All that there is has been logged.
    fn told(counts: &Counts) -> Self {
        let Counts { packets, bytes, tcp_flags: known, .. } = *counts;
        Self { packets, bytes, known, state: SEEN, ..Self::default() }
    }

    /// Notes what has come since the last pass; returns whether anything has.
    fn update(&mut self, counts: &Counts, pass: &Pass) -> bool {
        if counts.packets < self.packets || counts.bytes < self.bytes {
            // Another flow's, of a life that was not seen to end.
            *self = Self::default();
        }
        let before = *self;
        if counts.packets != self.packets && self.state & OPEN == 0 {
            let age = |stamp: Ticks| pass.now.ticks.wrapping_sub(stamp);
            // The later of the two, and not after the last packet.
            let made_since = age(counts.made) < age(pass.before);
            let first = if made_since || self.state & SEEN == 0 { counts.made } else { pass.before };
            self.first =
                if age(first) < age(counts.last) && age(counts.last) < Ticks::MAX / 2 { counts.last } else { first };
            self.state |= OPEN;
        }
        self.flags |= counts.tcp_flags & !self.known | counts.again;
        self.known = counts.tcp_flags;
        *self != before
    }

    fn take(&mut self, counts: &Counts) -> Option<Taken> {
        if self.state & OPEN == 0 {
            return None;
        }
        let taken = Taken {
            packets: counts.packets - self.packets,
            bytes: counts.bytes - self.bytes,
            tcp_flags: self.flags,
            first: self.first,
            begins: self.state & SEEN == 0,
        };
        *self = Self::told(counts);
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(packets: u64, last: Ticks) -> Counts {
        Counts { packets, bytes: 100 * packets, made: 5, last, ..Counts::default() }
    }

    fn pass(before: Ticks, ticks: Ticks) -> Pass {
        Pass { before, now: Moment { ticks, per_second: 100, ..Moment::default() } }
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let directory = tempfile::tempdir().expect("a directory");
        let (ledger, known) = Ledger::open(&directory.path().join("ledger")).expect("a file");
        assert!(!known);
        (directory, ledger)
    }

    #[test]
    fn a_window_is_what_came_since_the_last_one() {
        let (_directory, mut ledger) = ledger();
        assert_eq!(ledger.observe(7, &counts(3, 90), &pass(0, 100), false), None);
        let taken = ledger.observe(7, &counts(5, 150), &pass(100, 200), true).expect("five packets");
        assert_eq!(taken, Taken { packets: 5, bytes: 500, tcp_flags: 0, first: 5, begins: true });
        assert_eq!(ledger.observe(7, &counts(5, 150), &pass(200, 300), true), None, "silent");
        ledger.observe(7, &counts(5, 150), &pass(300, 400), false);
        ledger.observe(7, &counts(6, 450), &pass(400, 500), false);
        let taken = ledger.observe(7, &counts(9, 650), &pass(600, 700), true).expect("four packets");
        assert_eq!(taken, Taken { packets: 4, bytes: 400, tcp_flags: 0, first: 400, begins: false });
    }

    #[test]
    fn an_end_takes_the_rest_and_frees_the_place() {
        let (_directory, mut ledger) = ledger();
        ledger.observe(7, &counts(3, 90), &pass(0, 100), true);
        assert_eq!(ledger.end(7, &counts(4, 120), &pass(100, 200)).map(|taken| taken.packets), Some(1));
        assert_eq!(ledger.end(7, &counts(4, 120), &pass(200, 300)), None, "still there");
        let next = ledger.observe(7, &counts(1, 390), &pass(300, 400), true).expect("another flow's packet");
        assert_eq!((next.packets, next.begins), (1, true));
    }

    #[test]
    fn flags_are_of_the_window_they_came_in() {
        let (_directory, mut ledger) = ledger();
        let with = |packets, tcp_flags| Counts { tcp_flags, ..counts(packets, 90) };
        let mut flags = |counts: &Counts, ticks, close| {
            ledger.observe(0, counts, &pass(ticks - 100, ticks), close).map(|taken| taken.tcp_flags)
        };
        assert_eq!(flags(&with(1, 2), 100, false), None);
        assert_eq!(flags(&with(2, 3), 200, true), Some(3));
        assert_eq!(flags(&with(3, 3), 300, true), Some(0));
        assert_eq!(flags(&with(4, 7), 400, true), Some(4));
        let again = |packets, again| Counts { again, ..with(packets, 7) };
        assert_eq!(flags(&again(5, 2), 500, false), None);
        assert_eq!(flags(&again(6, 0), 600, true), Some(2), "a second SYN, an earlier pass of this window's");
        assert_eq!(flags(&again(7, 0), 700, true), Some(0));
        assert_eq!(flags(&again(7, 1), 800, true), None, "its packet is not counted yet");
        assert_eq!(flags(&again(8, 0), 900, true), Some(1), "now it is");
    }

    #[test]
    fn the_sum_over_all_windows_is_exact_wherever_entries_are() {
        let (_directory, mut ledger) = ledger();
        let mut sums = std::collections::BTreeMap::<u32, u64>::new();
        let slots = [0, 1, PIECE - 1, PIECE, 5 * PIECE + 3, 1_999_999];
        for round in 1..=20_u64 {
            for (at, slot) in slots.into_iter().enumerate() {
                let total = round * (at as u64 + 1);
                if let Some(taken) = ledger.observe(slot, &counts(total, 1), &pass(0, 1), round % 3 == at as u64 % 3) {
                    *sums.entry(slot).or_default() += taken.packets;
                }
            }
        }
        for (at, slot) in slots.into_iter().enumerate() {
            let rest = ledger.end(slot, &counts(20 * (at as u64 + 1), 1), &pass(0, 1)).map_or(0, |taken| taken.packets);
            assert_eq!(sums[&slot] + rest, 20 * (at as u64 + 1));
        }
    }

    #[test]
    fn the_next_controller_goes_on_where_this_one_was_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (mut ledger, _) = Ledger::open(&path).expect("a file");
        ledger.observe(PIECE, &counts(3, 90), &pass(0, 100), true);
        ledger.write().expect("room");
        drop(ledger);
        let (mut ledger, known) = Ledger::open(&path).expect("a file");
        assert!(known);
        let taken = ledger.observe(PIECE, &counts(10, 190), &pass(100, 200), true).expect("seven packets");
        assert_eq!((taken.packets, taken.begins), (7, false));
    }

    #[test]
    fn an_adopted_entry_begins_with_what_comes_from_now_on() {
        let (_directory, mut ledger) = ledger();
        ledger.adopt(3, &counts(1000, 90));
        assert_eq!(ledger.observe(3, &counts(1001, 190), &pass(100, 200), true).map(|taken| taken.packets), Some(1));
    }

    #[test]
    fn counters_that_went_back_are_another_flows() {
        let (_directory, mut ledger) = ledger();
        ledger.observe(3, &counts(1000, 90), &pass(0, 100), true);
        assert_eq!(ledger.observe(3, &counts(2, 190), &pass(100, 200), true).map(|taken| taken.packets), Some(2));
    }

    #[test]
    fn an_entry_that_was_taken_and_not_yet_freed_is_not_taken_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (mut ledger, _) = Ledger::open(&path).expect("a file");
        ledger.observe(7, &counts(3, 90), &pass(0, 100), true);
        assert_eq!(ledger.end(7, &counts(10, 90), &pass(100, 200)).map(|taken| taken.packets), Some(7));
        ledger.write().expect("room");
        drop(ledger);
        let (mut ledger, _) = Ledger::open(&path).expect("a file");
        assert_eq!(ledger.end(7, &counts(10, 90), &pass(200, 300)), None, "killed before its slot was free");
        assert_eq!(ledger.end(7, &counts(12, 190), &pass(200, 300)).map(|taken| taken.packets), Some(2));
        let other = Counts { made: 250, ..counts(12, 260) };
        assert_eq!(ledger.end(7, &other, &pass(200, 300)).map(|taken| taken.packets), Some(12), "another flow");
        let live = counts(20, 390);
        assert_eq!(
            ledger.observe(7, &live, &pass(300, 400), true).map(|taken| taken.packets),
            Some(20),
            "one that lives"
        );
    }

    #[test]
    fn without_room_the_book_stays_in_memory() {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        use std::os::fd::{AsFd, AsRawFd};
        let full = memfd_create("full", MFdFlags::MFD_ALLOW_SEALING).expect("memory");
        fcntl(full.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("a seal");
        let path = format!("/proc/self/fd/{}", full.as_raw_fd());
        let (mut ledger, _) = Ledger::open(Path::new(&path)).expect("a file");
        for slot in [0, PIECE, 0, PIECE] {
            let taken = ledger.observe(slot, &counts(3, 90), &pass(0, 100), true).map_or(0, |taken| taken.packets);
            assert!(ledger.write().is_err() || taken == 0);
        }
        let again = [0, PIECE].map(|slot| ledger.observe(slot, &counts(4, 190), &pass(100, 200), true));
        assert_eq!(again.map(|taken| taken.expect("a packet").packets), [1, 1], "three have been logged before");
    }
}
