//! From the embedded object to a `Datapath`: maps made or taken over, programs past the verifier, stages in their places.

use super::attach::remove_pins;
use super::flow_table::{FlowTable, Key, Parts, Tending};
use super::mapping::Mapping;
use super::table::{PerCpu, Table};
use super::{Datapath, DatapathError, Result};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{Program, ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use forwarder_ebpf::abi::{FlowKey, FlowKey4, FlowKey6, Handshake, Shape, names};
use forwarder_ebpf::verdict::Stage;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use zerocopy::IntoBytes;

/// The object that build.rs made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// Moves when a map's layout or meaning does, so that an older datapath's flows are not misread.
const ABI: u32 = 6;

/// Programs beside the stages.
pub(super) const ENTER: &str = "enter";
pub(super) const CLOCK: &str = "clock";
pub(super) const FIB: &str = "fib";

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Entries of the IPv4 flow table; a connection takes two.
    pub entries4: u32,
    /// Entries of the IPv6 flow table; a connection takes two.
    pub entries6: u32,
    /// Interface indexes below this can be served.
    pub ifindexes: u32,
    /// Directory on a bpffs for the pins. `None`: nothing is pinned, and all is gone with the `Datapath`.
    pub pins: Option<PathBuf>,
}

impl Datapath {
    /// Loads the programs. Maps that are pinned already are taken over, as they are.
    ///
    /// # Errors
    /// When the kernel refuses; what was made is undone.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        let directory = options.pins.as_ref().map(|pins| pins.join(maps_directory()));
        let adopted = directory.as_deref().map_or(Ok(false), is_whole)?;
        if let Some(directory) = directory.as_deref().filter(|_| !adopted) {
            remove_pins(directory)?;
        }
        let loaded = load_in(options, directory.as_deref(), adopted);
        if loaded.is_err()
            && !adopted
            && let (Some(directory), Some(pins)) = (&directory, &options.pins)
        {
            // Half a datapath is of no use to anybody; the error that brought us here is the one to tell. Another version's
            // may be beside it, and runs.
            let _ = fs::remove_dir_all(directory);
            let _ = fs::remove_dir(pins);
        }
        loaded
    }
}

/// Name of the directory with this version's maps, among an instance's pins.
pub fn maps_directory() -> String {
    format!("abi-{ABI}")
}

/// Whether a controller came as far as deciding the tables' shapes, which is the last thing it does before it serves
/// anything. One that was killed before has left nothing that is in use.
fn is_whole(directory: &Path) -> Result<bool> {
    let path = directory.join(names::SHAPES);
    if !path.exists() {
        return Ok(false);
    }
    let map = MapData::from_pin(&path).map_err(|source| {
        let source = Box::new(source);
        DatapathError::Pin { action: "open", path, source }
    })?;
    let map = map.fd().as_fd().try_clone_to_owned();
    let shapes = Table::new(names::SHAPES, map.map_err(|source| DatapathError::map("open", names::SHAPES, source))?)?;
    let is_decided = |family| Ok(shapes.read(&(family as u32))?.is_some_and(|shape: Shape| shape.homes != 0));
    Ok(is_decided(FlowKey4::FAMILY)? && is_decided(FlowKey6::FAMILY)?)
}

fn load_in(options: &LoadOptions, directory: Option<&Path>, adopted: bool) -> Result<Datapath> {
    let mut programs = load_object(options, directory)?;
    let stages = Stage::ALL.iter().map(|stage| stage.program());
    let names = stages.chain([ENTER, CLOCK, FIB]).chain(FlowKey4::PROGRAMS).chain(FlowKey6::PROGRAMS);
    load_programs(&mut programs, &names.collect::<Vec<_>>())?;
    // The kernel empties the array when nobody holds it open or pinned any more, whatever programs use it.
    let stages = descriptor(&programs, names::STAGES)?;
    place_stages(&mut programs)?;
    let cpus = aya::util::nr_cpus()
        .map_err(|(_, source)| DatapathError::map("count the CPUs for", names::COUNTERS, source))?;
    let shapes = shapes(&programs, options, adopted)?;
    let handshakes = Arc::new(map_handshakes(&programs)?);
    Ok(Datapath {
        flows4: flow_table(&mut programs, &shapes, &handshakes)?,
        flows6: flow_table(&mut programs, &shapes, &handshakes)?,
        fragments4: table(&programs, names::FRAGMENTS4)?,
        fragments6: table(&programs, names::FRAGMENTS6)?,
        ifaces: table(&programs, names::IFACES)?,
        control: table(&programs, names::CONTROL)?,
        nat_rules: table(&programs, names::NAT_RULES)?,
        nat_addresses: table(&programs, names::NAT_ADDRESSES)?,
        host_ports: table(&programs, names::HOST_PORTS)?,
        devices: table(&programs, names::DEVICES)?,
        counters: PerCpu::new(names::COUNTERS, descriptor(&programs, names::COUNTERS)?, cpus)?,
        unanswered: table(&programs, names::UNANSWERED)?,
        sources: table(&programs, names::SOURCES)?,
        sources_past: descriptor(&programs, names::SOURCES_PAST)?,
        policy: descriptor(&programs, names::FIREWALL)?,
        rule_counters: PerCpu::new(names::FIREWALL_COUNTERS, descriptor(&programs, names::FIREWALL_COUNTERS)?, cpus)?,
        rule_log_budget: PerCpu::new(names::RULE_LOG_BUDGET, descriptor(&programs, names::RULE_LOG_BUDGET)?, cpus)?,
        dwell: PerCpu::new(names::DWELL, descriptor(&programs, names::DWELL)?, cpus)?,
        refused: super::RefusedTables {
            refusing: table(&programs, names::REFUSING)?,
            v4: table(&programs, names::REFUSED4)?,
            v6: table(&programs, names::REFUSED6)?,
            lost: PerCpu::new(names::REFUSED_LOST, descriptor(&programs, names::REFUSED_LOST)?, cpus)?,
        },
        programs: Mutex::new(programs),
        _stages: stages,
        links: Mutex::new(BTreeMap::new()),
        pins: options.pins.clone(),
        adopted,
    })
}

/// What a controller that starts again takes over.
const PINNED: [&str; 33] = [
    names::FLOWS4,
    names::FLOWS6,
    names::BIRTHS4,
    names::BIRTHS6,
    names::BLOCKS4,
    names::BLOCKS6,
    names::SHAPES,
    names::USED,
    names::HANDSHAKES,
    names::FRAGMENTS4,
    names::FRAGMENTS6,
    names::IFACES,
    names::CONTROL,
    names::NAT_RULES,
    names::NAT_ADDRESSES,
    names::HOST_PORTS,
    names::DEVICES,
    names::STAGES,
    names::COUNTERS,
    names::DWELL,
    names::SCRATCH,
    names::HELD,
    names::FIREWALL,
    names::UNANSWERED,
    names::SOURCES,
    names::SOURCES_PAST,
    names::FIREWALL_COUNTERS,
    names::RULE_LOG,
    names::RULE_LOG_BUDGET,
    names::REFUSING,
    names::REFUSED4,
    names::REFUSED6,
    names::REFUSED_LOST,
];

fn load_object(options: &LoadOptions, directory: Option<&Path>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let shape4 = Shape::of::<FlowKey4>(options.entries4, [0; 10]);
    let shape6 = Shape::of::<FlowKey6>(options.entries6, [0; 10]);
    loader
        .map_max_entries(names::FLOWS4, shape4.slots())
        .map_max_entries(names::FLOWS6, shape6.slots())
        .map_max_entries(names::BIRTHS4, shape4.slots())
        .map_max_entries(names::BIRTHS6, shape6.slots())
        .map_max_entries(names::BLOCKS4, shape4.block_words())
        .map_max_entries(names::BLOCKS6, shape6.block_words())
        .map_max_entries(names::IFACES, options.ifindexes);
    if let Some(directory) = directory {
        fs::create_dir_all(directory).map_err(|source| DatapathError::Pin {
            action: "make",
            path: directory.to_owned(),
            source: Box::new(source),
        })?;
        for name in PINNED {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(OBJECT).map_err(|source| DatapathError::Load(Box::new(source)))
}

/// Takes programs past the verifier, as many at a time as there are CPUs: each takes up to a third of a second there.
fn load_programs(object: &mut Ebpf, names: &[&'static str]) -> Result<()> {
    let mut found: BTreeMap<_, _> = object.programs_mut().collect();
    let named = names.iter().map(|name| Ok((*name, found.remove(name).ok_or(DatapathError::Missing(name))?)));
    let waiting = Mutex::new(named.collect::<Result<VecDeque<_>>>()?);
    let waiting = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        loop {
            // The lock is not held while a program is loaded.
            let next = waiting().pop_front();
            let Some((name, program)) = next else { return Ok(()) };
            // Where one is refused, nobody needs the others.
            load_program(name, program).inspect_err(|_| waiting().clear())?;
        }
    };
    let at_a_time = available_parallelism().map_or(1, NonZero::get).min(names.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect()
    })
}

fn load_program(name: &'static str, program: &mut Program) -> Result<()> {
    let program: &mut Xdp =
        program.try_into().map_err(|error| DatapathError::Program { program: name, source: Box::new(error) })?;
    program.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!("{log}");
            let reason = reason_in(&log).map_or_else(|| io_error.to_string(), |reason| format!("{io_error}: {reason}"));
            DatapathError::Program { program: name, source: reason.into() }
        }
        error => DatapathError::Program { program: name, source: Box::new(error) },
    })
}

/// What the verifier complains of: the last line of its log before its statistics.
fn reason_in(log: &str) -> Option<&str> {
    let statistics = ["verification time", "stack depth", "processed "];
    let mut lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines.find(|line| !statistics.iter().any(|start| line.starts_with(start)))
}

/// A program of the object.
pub(super) fn xdp<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp> {
    let program = programs.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })
}

/// Puts every stage where the others find it; a running datapath changes over stage by stage.
fn place_stages(programs: &mut Ebpf) -> Result<()> {
    let failed = |source| DatapathError::Program { program: names::STAGES, source };
    let stages = programs.take_map(names::STAGES).ok_or(DatapathError::Missing(names::STAGES))?;
    let mut stages: ProgramArray<MapData> = stages.try_into().map_err(|source| failed(Box::new(source)))?;
    for stage in Stage::ALL {
        let program = xdp(programs, stage.program())?;
        let descriptor = program.fd().map_err(|source| failed(Box::new(source)))?.try_clone();
        let descriptor = descriptor.map_err(|source| failed(Box::new(source)))?;
        stages.set(*stage as u32, &descriptor, 0).map_err(|source| failed(Box::new(source)))?;
    }
    Ok(())
}

/// What never changes in the tables, decided now or by the controller before.
fn shapes(programs: &Ebpf, options: &LoadOptions, adopted: bool) -> Result<Table<u32, Shape>> {
    let shapes = table(programs, names::SHAPES)?;
    if !adopted {
        write_shape::<FlowKey4>(&shapes, options.entries4)?;
        write_shape::<FlowKey6>(&shapes, options.entries6)?;
    }
    Ok(shapes)
}

/// Decides what never changes in a table.
fn write_shape<K: Key>(shapes: &Table<u32, Shape>, entries: u32) -> Result<()> {
    let mut secret = [0; 10];
    getrandom::fill(secret.as_mut_bytes()).map_err(|_| DatapathError::Random)?;
    shapes.write(&(K::FAMILY as u32), &Shape::of::<K>(entries, secret))
}

fn map_handshakes(programs: &Ebpf) -> Result<Mapping<Handshake>> {
    let map = table::<u32, Handshake>(programs, names::HANDSHAKES)?;
    Mapping::readable(map.descriptor(), 0, map.max_entries() as usize)
        .map_err(|source| DatapathError::map("map", names::HANDSHAKES, source))
}

fn flow_table<K: Key>(
    programs: &mut Ebpf,
    shapes: &Table<u32, Shape>,
    handshakes: &Arc<Mapping<Handshake>>,
) -> Result<FlowTable<K>> {
    let [slots, births, blocks] = K::MAPS;
    let [retire, vacate, place, forget] = K::PROGRAMS;
    FlowTable::new(Parts {
        slots: descriptor(programs, slots)?,
        births: descriptor(programs, births)?,
        blocks: descriptor(programs, blocks)?,
        tending: Tending {
            retire: program_descriptor(programs, retire)?,
            vacate: program_descriptor(programs, vacate)?,
            place: program_descriptor(programs, place)?,
            forget: program_descriptor(programs, forget)?,
        },
        used: descriptor(programs, names::USED)?,
        shape: shapes.read(&(K::FAMILY as u32))?.unwrap_or_default(),
        handshakes: handshakes.clone(),
    })
}

fn program_descriptor(programs: &mut Ebpf, name: &'static str) -> Result<OwnedFd> {
    let failed = |source| DatapathError::Program { program: name, source };
    let descriptor = xdp(programs, name)?.fd().map_err(|source| failed(Box::new(source)))?;
    descriptor.as_fd().try_clone_to_owned().map_err(|source| failed(Box::new(source)))
}

fn table<K: super::table::Element, V: super::table::Value>(programs: &Ebpf, name: &'static str) -> Result<Table<K, V>> {
    Table::new(name, descriptor(programs, name)?)
}

fn descriptor(programs: &Ebpf, name: &'static str) -> Result<OwnedFd> {
    let map = programs.map(name).ok_or(DatapathError::Missing(name))?;
    let data = match map {
        Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::DevMap(data)
        | Map::ProgramArray(data)
        | Map::ArrayOfMaps(data) => data,
        _ => return Err(DatapathError::Missing(name)),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|source| DatapathError::map("open", name, source))
}

#[cfg(test)]
mod tests {
    use super::reason_in;

    #[test]
    fn the_verifiers_complaint_stands_before_its_statistics() {
        let log = "0: R1=ctx()\n5: (61) r1 = *(u32 *)(r7 +4)\nR4 !read_ok\nverification time 8 usec\nstack depth 31\n\
                   processed 9 insns (limit 1000000)\n";
        assert_eq!(reason_in(log), Some("R4 !read_ok"));
        assert_eq!(reason_in(""), None);
    }
}
