//! Many CPUs on one small, crowded table: threads insert, find, count and retire, and another vacates after grace periods of
//! its own making. Windows overlap and slots are fought for all the time.

use super::{Slots, Tenancy, find, insert, retire, vacate};
use crate::abi::{Birth, FlowEntry, FlowKey4, SharedU32, SharedU64, status};
use crate::sim::Flows;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::vec::Vec;

const THREADS: u32 = 4;
/// Entries that each thread makes and retires.
const RETIRED: u32 = 10_000;
const KEYS: u32 = 64;
/// Entries that one thread keeps at most.
const HELD: usize = 6;
/// Room for the entries that all may keep, and a little for those that are dying.
const ENTRIES: u32 = 24;

struct World {
    flows: Flows<FlowKey4>,
    /// Odd while the thread runs a program.
    running: [AtomicU64; THREADS as usize],
    /// By key: so many entries are live with it.
    live: Vec<AtomicU32>,
    /// By entry, in the order that they were made: packets that were counted there.
    counted: Vec<AtomicU32>,
    made: AtomicU32,
    vacated: AtomicU32,
    is_over: AtomicBool,
}

fn key(number: u32) -> FlowKey4 {
    FlowKey4::pack(u64::from(number) << 8 | 10, number, 17, 1)
}

/// An entry whose rewrite tells which one it is, and of what key.
fn entry(id: u32, number: u32) -> FlowEntry {
    FlowEntry {
        status: SharedU32::new(status::ORIGINATOR),
        addresses: SharedU64::new(u64::from(id) << 32 | u64::from(number)),
        ..FlowEntry::default()
    }
}

fn whose(entry: &FlowEntry) -> (u32, u32) {
    let word = entry.addresses.load();
    ((word >> 32) as u32, word as u32)
}

struct Cpu<'w> {
    world: &'w World,
    number: usize,
    seed: u32,
    /// Entries of its own: which, and of what key.
    held: Vec<(u32, u32)>,
    /// Which one it makes next.
    next: u32,
    retired: u32,
}

impl Cpu<'_> {
    fn random(&mut self, below: u32) -> u32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        self.seed % below
    }

    /// What a program does: whoever waits for a grace period waits for its end.
    fn program<R>(&self, run: impl FnOnce(&World) -> R) -> R {
        self.world.running[self.number].fetch_add(1, SeqCst);
        let result = run(self.world);
        self.world.running[self.number].fetch_add(1, SeqCst);
        result
    }

    fn work(&mut self) {
        while self.retired < RETIRED {
            let (chance, number) = (self.random(4), self.random(KEYS));
            match chance {
                0 if self.held.len() < HELD => self.insert(number),
                0 | 1 => self.retire(),
                2 => self.look_after_own(),
                _ => self.count(number),
            }
        }
        while !self.held.is_empty() {
            self.retire();
        }
    }

    fn insert(&mut self, number: u32) {
        let id = self.next;
        let inserted = self.program(|world| {
            let inserted = insert(&world.flows, &key(number), &entry(id, number), &Birth::default()).is_ok();
            assert!(!inserted || world.live[number as usize].fetch_add(1, SeqCst) == 0, "{number} is there twice");
            inserted
        });
        if inserted {
            self.held.push((id, number));
            self.next = self.world.made.fetch_add(1, SeqCst);
        } else {
            // Room may have to be made, and that by a thread that wants a core as well.
            std::thread::yield_now();
        }
    }

    fn retire(&mut self) {
        let Some(at) = self.held.len().checked_sub(1) else { return };
        let at = self.random(at as u32 + 1) as usize;
        let (_, number) = self.held.swap_remove(at);
        self.program(|world| {
            world.live[number as usize].fetch_sub(1, SeqCst);
            assert!(retire(&world.flows, &key(number)), "{number} was to be found");
        });
        self.retired += 1;
    }

    fn look_after_own(&mut self) {
        let Some(at) = self.held.len().checked_sub(1) else { return };
        let at = self.random(at as u32 + 1) as usize;
        let own = self.held[at];
        self.program(|world| {
            let slot = find(&world.flows, &key(own.1)).expect("who lives is found");
            assert_eq!(whose(&slot.entry), own);
        });
    }

    fn count(&self, number: u32) {
        self.program(|world| {
            let Some(slot) = find(&world.flows, &key(number)) else { return };
            let (id, of) = whose(&slot.entry);
            assert_eq!(of, number, "another's entry");
            std::thread::yield_now();
            slot.entry.packets.add(1);
            world.counted[id as usize].fetch_add(1, SeqCst);
        });
    }
}

impl World {
    fn wait_for_programs(&self) {
        for running in &self.running {
            let seen = running.load(SeqCst);
            while seen % 2 == 1 && running.load(SeqCst) == seen && !self.is_over.load(SeqCst) {
                std::thread::yield_now();
            }
        }
    }

    /// As the sweeper does: what is dying is read and vacated a grace period later.
    fn sweep(&self) {
        let slot = |index| self.flows.slot(index).expect("within the table");
        let dying: Vec<_> = (0..self.flows.shape().expect("it has a shape").slots())
            .filter(|index| Tenancy::of(slot(*index)) == Tenancy::Dying)
            .collect();
        self.wait_for_programs();
        for index in dying {
            let (id, _) = whose(&slot(index).entry);
            let packets = slot(index).entry.packets.load();
            assert_eq!(packets, u64::from(self.counted[id as usize].load(SeqCst)), "packets of entry {id}");
            assert!(vacate(&self.flows, index));
            self.vacated.fetch_add(1, SeqCst);
        }
    }
}

#[test]
fn on_many_cpus_nothing_is_lost_doubled_or_counted_elsewhere() {
    let world = World {
        flows: Flows::new(ENTRIES),
        running: Default::default(),
        live: (0..KEYS).map(|_| AtomicU32::new(0)).collect(),
        counted: (0..THREADS * (RETIRED + HELD as u32 + 1)).map(|_| AtomicU32::new(0)).collect(),
        made: AtomicU32::new(THREADS),
        vacated: AtomicU32::new(0),
        is_over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let cpus = (0..THREADS as usize).map(|number| {
            let seed = 0x9e37_79b9u32.wrapping_mul(number as u32 + 1);
            let mut cpu = Cpu { world: &world, number, seed, held: Vec::new(), next: number as u32, retired: 0 };
            scope.spawn(move || cpu.work())
        });
        let cpus: Vec<_> = cpus.collect();
        scope.spawn(|| {
            while !world.is_over.load(SeqCst) {
                world.sweep();
            }
        });
        let ended: Vec<_> = cpus.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        world.is_over.store(true, SeqCst);
        assert!(ended.iter().all(Result::is_ok));
    });
    world.sweep();
    let slots = (0..).map_while(|index| world.flows.slot(index));
    let left: Vec<_> = slots.filter(|slot| slot.passed() != 0 || slot.entry.status.load() != 0).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(world.flows.used().expect("it counts").slots.load(), 0);
    // Each thread has one number left over.
    assert_eq!(world.vacated.into_inner(), world.made.into_inner() - THREADS);
}
