//! Generator, sink and bare redirect in the kernel: the only module of the benchmark that names aya.
//!
//! Interfaces are named by index in the network namespace of the calling thread.

use anyhow::{Context, Result, ensure};
use aya::maps::xdp::DevMap;
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use forwarder_ebpf::abi::{LoadConfig, LoadCounter};
use zerocopy::{FromBytes, IntoBytes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/load.o"));

/// Frames that the kernel hands to the generator at once.
const BATCH: u32 = 64;
/// `LoadCounter` in words, as aya reads it.
const WORDS: usize = size_of::<LoadCounter>() / 8;

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
    pub fn open(config: &LoadConfig) -> Result<Self> {
        let mut programs = EbpfLoader::new().load(OBJECT).context("cannot load the generator into the kernel")?;
        for name in ["generate", "sink", "bare"] {
            program(&mut programs, name)?.load().with_context(|| format!("the kernel refuses `{name}`"))?;
        }
        let map = programs.map_mut("LOAD").context("no map LOAD")?;
        let mut load: Array<_, [u8; size_of::<LoadConfig>()]> = Array::try_from(map)?;
        let bytes: [u8; size_of::<LoadConfig>()] = config.as_bytes().try_into().context("a config has its size")?;
        load.set(0, bytes, 0).context("cannot write the config")?;
        Ok(Self { programs })
    }

    /// Has the generator send by an interface.
    ///
    /// # Errors
    /// When it cannot take redirected frames.
    pub fn send_by(&mut self, ifindex: u32) -> Result<()> {
        self.lead(0, ifindex)
    }

    /// Counts and drops what comes in by an interface.
    ///
    /// # Errors
    /// When XDP cannot be attached natively.
    pub fn attach_sink(&mut self, ifindex: u32) -> Result<()> {
        self.attach("sink", ifindex)
    }

    /// Redirects what comes in by one interface to another.
    ///
    /// # Errors
    /// When XDP cannot be attached natively.
    pub fn attach_bare(&mut self, from: u32, to: u32) -> Result<()> {
        self.lead(1, to)?;
        self.attach("bare", from)
    }

    /// Generates `packets` frames of `bytes` each, as fast as the calling thread's CPU does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn generate(&self, bytes: usize, packets: u32) -> Result<()> {
        let program: &Xdp = self.programs.program("generate").context("no program generate")?.try_into()?;
        let frame = vec![0; bytes];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = packets;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        program.test_run(options).context("cannot generate")?;
        Ok(())
    }

    /// Frames made so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sent(&self) -> Result<u64> {
        let sent: PerCpuArray<&MapData, u64> = self.programs.map("SENT").context("no map SENT")?.try_into()?;
        Ok(sent.get(&0, 0)?.iter().sum())
    }

    /// Frames that arrived at the sink so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arrived(&self) -> Result<LoadCounter> {
        let map = self.programs.map("ARRIVED").context("no map ARRIVED")?;
        let arrived: PerCpuArray<&MapData, [u64; WORDS]> = map.try_into()?;
        let mut sum = LoadCounter::default();
        for words in arrived.get(&0, 0)?.iter() {
            let counter = LoadCounter::read_from_bytes(words.as_bytes()).ok();
            let counter = counter.context("a counter has another size than ours")?;
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
            sum.wrong += counter.wrong;
        }
        Ok(sum)
    }

    fn lead(&mut self, slot: u32, ifindex: u32) -> Result<()> {
        let mut out: DevMap<_> = self.programs.map_mut("OUT").context("no map OUT")?.try_into()?;
        out.set(slot, ifindex, None, 0).context("cannot redirect to an interface")
    }

    fn attach(&mut self, name: &str, ifindex: u32) -> Result<()> {
        ensure!(ifindex != 0, "no such interface");
        program(&mut self.programs, name)?
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .with_context(|| format!("cannot attach `{name}` natively"))?;
        Ok(())
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(programs.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
