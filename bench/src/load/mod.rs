//! Generator, sink and bare redirect in the kernel: the only module of the benchmark that names aya or has `unsafe`.
//!
//! Interfaces are named by index in the network namespace of the calling thread.

mod access;
mod generation;
mod map_size;

pub use access::Access;
pub use generation::{Amount, Burst, Window, come_first, stay_on};
pub use map_size::{MapSize, map_size};

use anyhow::{Context, Result, ensure};
use aya::maps::xdp::DevMap;
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, EbpfLoader};
use forwarder_ebpf::abi::{DWELL_BUCKETS, LoadArrived, LoadConfig, LoadStream};
use zerocopy::{FromBytes, Immutable, IntoBytes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/load.o"));

/// The ABI's types in words, which aya knows to be plain.
type ConfigWords = [u64; size_of::<LoadConfig>() / 8];
type StreamWords = [u64; size_of::<LoadStream>() / 8];
type ArrivedWords = [u64; size_of::<LoadArrived>() / 8];

/// Where frames are sent by.
#[derive(Clone, Copy, Debug)]
pub enum Slot {
    /// The clients' end: generated frames of direction 0.
    Client = 0,
    /// The servers' end: generated frames of direction 1, and echoes.
    Server = 1,
    /// The device's end towards the servers, for the bare redirect.
    Outside = 2,
    /// The device's end towards the clients, for the bare redirect.
    Inside = 3,
}

/// What can be attached to an interface.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// Counts and checks what the generator made, and drops it.
    Sink,
    /// Redirects everything to the other side.
    Bare,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Bare => "bare",
        }
    }
}

/// What was counted up to now, by direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Frames sent.
    pub sent: [u64; 2],
    /// Frames that arrived.
    pub arrived: [LoadArrived; 2],
}

impl Counts {
    /// Frames sent, both directions.
    pub fn all_sent(&self) -> u64 {
        self.sent.iter().sum()
    }

    /// Some figure of what arrived, both directions.
    pub fn sum(&self, figure: impl Fn(&LoadArrived) -> u64) -> u64 {
        self.arrived.iter().map(figure).sum()
    }

    /// Frames that arrived, both directions.
    pub fn all_arrived(&self) -> u64 {
        self.sum(|arrived| arrived.packets)
    }
}

/// The loaded programs. All that is attached goes when this value is dropped.
#[derive(Debug)]
pub struct Load {
    programs: Ebpf,
}

impl Load {
    /// Loads the programs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> Result<Self> {
        let mut programs = EbpfLoader::new().load(OBJECT).context("cannot load the generator into the kernel")?;
        for name in ["generate", "sink", "bare"] {
            program(&mut programs, name)?.load().with_context(|| format!("the kernel refuses `{name}`"))?;
        }
        Ok(Self { programs })
    }

    /// Says what to generate and what to expect, and counts from 0 again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure(&mut self, config: &LoadConfig) -> Result<()> {
        let words: ConfigWords = words(config)?;
        self.array::<ConfigWords>("LOAD")?.set(0, words, 0).context("cannot write the config")?;
        let mut arrived: Array<_, ArrivedWords> = self.array("ARRIVED")?;
        for direction in 0..2 {
            arrived.set(direction, ArrivedWords::default(), 0).context("cannot reset a counter")?;
        }
        self.clear::<StreamWords>("STREAMS", 2)?;
        self.clear::<u64>("TRANSIT", DWELL_BUCKETS)
    }

    /// Has a slot lead to an interface.
    ///
    /// # Errors
    /// When it cannot take redirected frames.
    pub fn lead(&mut self, slot: Slot, ifindex: u32) -> Result<()> {
        let mut out: DevMap<_> = self.map_mut("OUT")?.try_into()?;
        out.set(slot as u32, ifindex, None, 0).with_context(|| format!("cannot redirect to interface {ifindex}"))
    }

    /// Attaches a program to an interface.
    ///
    /// # Errors
    /// When the driver does not take XDP.
    pub fn attach(&mut self, what: Program, ifindex: u32) -> Result<()> {
        ensure!(ifindex != 0, "no such interface");
        program(&mut self.programs, what.name())?
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .with_context(|| format!("cannot attach `{}` natively", what.name()))?;
        Ok(())
    }

    /// Everything counted since [`Load::configure`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counts(&self) -> Result<Counts> {
        let streams: PerCpuArray<&MapData, StreamWords> = self.map("STREAMS")?.try_into()?;
        let arrived: Array<&MapData, ArrivedWords> = self.map("ARRIVED")?.try_into()?;
        let mut counts = Counts::default();
        for direction in 0..2 {
            for stream in streams.get(&(direction as u32), 0)?.iter() {
                counts.sent[direction] += value::<LoadStream>(stream.as_bytes())?.sent;
            }
            counts.arrived[direction] = value(arrived.get(&(direction as u32), 0)?.as_bytes())?;
        }
        Ok(counts)
    }

    /// How long the frames with a time stamp took from generator to sink: how many by bucket of `abi::dwell_bucket_ns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn transit(&self) -> Result<Vec<u64>> {
        let transit: PerCpuArray<&MapData, u64> = self.map("TRANSIT")?.try_into()?;
        (0..DWELL_BUCKETS).map(|bucket| Ok(transit.get(&bucket, 0)?.iter().sum())).collect()
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.programs.map(name).with_context(|| format!("no map {name}"))
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.programs.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.map_mut(name)?.try_into()?)
    }

    fn clear<V: aya::Pod + Default>(&mut self, name: &str, entries: u32) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
        let mut array: PerCpuArray<_, V> = self.map_mut(name)?.try_into()?;
        for index in 0..entries {
            let zeros = PerCpuValues::try_from(vec![V::default(); cpus]).context("cannot reset a counter")?;
            array.set(index, zeros, 0).context("cannot reset a counter")?;
        }
        Ok(())
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(programs.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn words<W: FromBytes>(value: &(impl IntoBytes + Immutable)) -> Result<W> {
    W::read_from_bytes(value.as_bytes()).ok().context("a value has another size than its words")
}

fn value<T: FromBytes>(bytes: &[u8]) -> Result<T> {
    T::read_from_bytes(bytes).ok().context("a value has another size than ours")
}
