//! The types in `forwarder_ebpf::abi` are those of the maps that the kernel made from the object: sizes and numbers of
//! elements as the kernel tells them, and values that come back as they were written. Unpinned it works as well. Needs root.

use anyhow::Result;
use forwarder::datapath::{Action, Datapath, LoadOptions};
use forwarder_ebpf::abi::{
    Control, Counter, DWELL_BUCKETS, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6,
    HANDSHAKES, Handshake, IfaceConfig, MAX_FRAGMENT_TRAINS, MAX_IFACES, MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatRule,
    OUTCOMES, Shape, Side, Slot, Used, counter_index,
};
use forwarder_ebpf::verdict::Drop;
use forwarder_kit::packet::Packet;
use std::collections::BTreeSet;
use std::time::Duration;

/// Numbers of map types (linux/bpf.h, `enum bpf_map_type`).
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const DEVMAP: u32 = 14;

/// Type, bytes of a key, bytes of a value, elements.
type Map = (u32, u32, u32, u32);

const fn map<K, V>(kind: u32, elements: u32) -> Map {
    (kind, size_of::<K>() as u32, size_of::<V>() as u32, elements)
}

const OPTIONS: LoadOptions = LoadOptions { entries4: 100, entries6: 200, ifindexes: 300, pins: None };

#[test]
fn the_kernels_maps_have_the_sizes_of_our_types() -> Result<()> {
    let datapath = Datapath::load(&OPTIONS)?;
    let expected = [
        ("FLOWS4", map::<u32, Slot<FlowKey4>>(ARRAY, Shape::of::<FlowKey4>(100, [0; 10]).slots())),
        ("FLOWS6", map::<u32, Slot<FlowKey6>>(ARRAY, Shape::of::<FlowKey6>(200, [0; 10]).slots())),
        ("BLOCKS4", map::<u32, u64>(ARRAY, 1)),
        ("SHAPES", map::<u32, Shape>(ARRAY, 2)),
        ("USED", map::<u32, Used>(ARRAY, 2)),
        ("HANDSHAKES", map::<u32, Handshake>(ARRAY, HANDSHAKES)),
        ("FRAGMENTS4", map::<FragmentKey4, FragmentOwner4>(LRU_HASH, MAX_FRAGMENT_TRAINS)),
        ("FRAGMENTS6", map::<FragmentKey6, FragmentOwner6>(LRU_HASH, MAX_FRAGMENT_TRAINS)),
        ("IFACES", map::<u32, IfaceConfig>(ARRAY, 300)),
        ("CONTROL", map::<u32, Control>(ARRAY, 1)),
        ("NAT_RULES", map::<u32, NatRule>(ARRAY, 2 * MAX_NAT_RULES)),
        ("NAT_ADDRESSES", map::<u32, [u8; 4]>(ARRAY, 2 * MAX_NAT_ADDRESSES)),
        ("HOST_PORTS", map::<u32, u64>(ARRAY, 1024)),
        // Interface index and, unused, a program to run there (linux/bpf.h, `struct bpf_devmap_val`).
        ("DEVICES", map::<u32, [u32; 2]>(DEVMAP, MAX_IFACES)),
        ("COUNTERS", map::<u32, Counter>(PER_CPU_ARRAY, MAX_IFACES * OUTCOMES)),
        ("DWELL", map::<u32, u64>(PER_CPU_ARRAY, DWELL_BUCKETS)),
    ];
    let found = open_maps()?;
    for (name, map) in expected {
        assert!(found.contains(&map), "{name} is not {map:?}; there are {found:?}");
    }
    drop(datapath);
    Ok(())
}

#[test]
fn what_is_written_comes_back() -> Result<()> {
    let datapath = Datapath::load(&OPTIONS)?;
    let control = Control { epoch: 7, port_first: 1024, port_last: 65_535, sample_mask: 15, ..Control::default() };
    datapath.write_control(&control)?;
    assert_eq!(format!("{:?}", datapath.read_control()?), format!("{control:?}"));
    Ok(())
}

/// Without pins nothing but the `Datapath` keeps the stages in their places.
#[test]
fn unpinned_stages_stay_where_they_are() -> Result<()> {
    const LOOPBACK: u32 = 1;
    let datapath = Datapath::load(&OPTIONS)?;
    datapath.write_control(&Control { epoch: 1, ..Control::default() })?;
    datapath.write_iface(LOOPBACK, &IfaceConfig { side: Side::Inside as u8, ..IfaceConfig::default() })?;
    // The kernel empties an array that nobody holds in the background.
    std::thread::sleep(Duration::from_millis(100));
    // Nobody sends from a loopback address: the stage for packets that are not on the fast path says so.
    let frame = Packet::between("127.0.0.9", "192.0.2.1").macs([2; 6], [0; 6]).udp(1, 2).build();
    assert_eq!(datapath.run_frame(LOOPBACK, &frame)?.action, Action::Drop);
    let counters = datapath.read_counters(1)?;
    let counted = |why: Drop| counters[counter_index(0, why.outcome()) as usize].packets;
    assert_eq!((counted(Drop::Internal), counted(Drop::Martian)), (0, 1));
    Ok(())
}

/// The maps that this process holds open, as the kernel describes them (proc_pid_fdinfo(5)).
fn open_maps() -> Result<BTreeSet<Map>> {
    let mut maps = BTreeSet::new();
    for file in std::fs::read_dir("/proc/self/fdinfo")? {
        // The descriptor that reads this directory is in it, and gone by now.
        let Ok(text) = std::fs::read_to_string(file?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        let fields = (field("map_type:"), field("key_size:"), field("value_size:"), field("max_entries:"));
        if let (Some(kind), Some(key), Some(value), Some(elements)) = fields {
            maps.insert((kind, key, value, elements));
        }
    }
    Ok(maps)
}
