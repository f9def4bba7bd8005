//! The loaded BPF programs as a body, run frame by frame with `BPF_PROG_TEST_RUN` in a namespace that has the world's
//! interfaces, neighbours and routes. Nothing is attached and nothing is sent.

use anyhow::{Context, Result, bail};
use forwarder::datapath::{Datapath, Element, FlowTable, HeldFrames, Key, LoadOptions, Seen, Table, Value};
use forwarder::host::Bpffs;
use forwarder_ebpf::abi::{Counter, FlowEntry, MAX_IFACES, Ticks};
use forwarder_ebpf::tables::Fate;
use forwarder_golden::body::{Action, Body, Flows, Hits, Sent, is_responder, measured};
use forwarder_golden::case::Change;
use forwarder_golden::world::{CAPACITY, PORTS, Port, ROUTES, STATIONS, Way, World, compiled};
use forwarder_kit::Netns;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// The programs, and the namespace whose routes they ask. Lives on a thread inside of it.
pub struct KernelBody<'n> {
    netns: &'n Netns,
    datapath: Datapath,
    /// Where it is pinned.
    bpffs: Option<Bpffs>,
    held: HeldFrames,
    /// Held frames are waited for on a runtime, even if never for long.
    runtime: tokio::runtime::Runtime,
    /// What cases have changed in the namespace and `reset` has to undo: prefixes, interfaces that do not forward.
    routes: BTreeSet<&'static str>,
    still: BTreeSet<u32>,
    /// Rules whose counters were asked for.
    counted: Cell<usize>,
}

/// Gives a fresh namespace the world's interfaces, neighbours and routes.
pub fn furnish(netns: &Netns) -> Result<()> {
    netns.set_sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    for Port { ifindex, name, address4, address6, .. } in PORTS {
        let mac = text(Port::of(ifindex).mac(1));
        netns.ip(&format!(
            "link add name {name} index {ifindex} address {mac} mtu 1500 type veth peer name {name}-peer"
        ))?;
        netns.ip(&format!("link set {name}-peer up"))?;
        netns.ip(&format!("link set {name} up"))?;
        netns.ip(&format!("address add {address4}/24 broadcast + dev {name}"))?;
        netns.ip(&format!("address add {address6}/64 dev {name} nodad"))?;
    }
    for (ifindex, address, station) in STATIONS {
        let port = Port::of(*ifindex);
        let mac = text(port.mac(*station));
        netns.ip(&format!("neighbour replace {address} lladdr {mac} dev {} nud permanent", port.name))?;
    }
    ROUTES.iter().try_for_each(|(prefix, way)| set_route(netns, prefix, *way))
}

fn set_route(netns: &Netns, prefix: &str, way: Way) -> Result<()> {
    let line = match way {
        Way::Via(ifindex, mtu) => {
            let port = Port::of(ifindex);
            let of_family = |address: &str| address.contains(':') == prefix.contains(':');
            let is_router =
                |(at, who, station): &&(u32, &str, u8)| (*at, *station) == (ifindex, port.router) && of_family(who);
            let (_, router, _) = STATIONS.iter().find(is_router).context("no router on that interface")?;
            // Unlocked, an IPv4 route's MTU does not count for what is forwarded (`ip_mtu_from_fib_result`).
            format!("{prefix} via {router} dev {} mtu lock {mtu}", port.name)
        }
        Way::Refused(Fate::Blackhole) => format!("blackhole {prefix}"),
        Way::Refused(Fate::Unreachable) => format!("unreachable {prefix}"),
        Way::Refused(Fate::Prohibited) => format!("prohibit {prefix}"),
        Way::Refused(other) => bail!("no route says {other:?}"),
    };
    netns.ip(&format!("{}route replace {line}", family(prefix))).map(drop)
}

fn family(prefix: &str) -> &'static str {
    if prefix.contains(':') { "-6 " } else { "-4 " }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl<'n> KernelBody<'n> {
    /// Loads the programs; the thread has to be in the namespace. It stays on one CPU from now on, because the budget of
    /// ICMP errors is per CPU.
    pub fn new(netns: &'n Netns) -> Result<Self> {
        let this = nix::unistd::Pid::from_raw(0);
        let allowed = nix::sched::sched_getaffinity(this)?;
        let mut one = nix::sched::CpuSet::new();
        let first = (0..nix::sched::CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        one.set(first.context("no CPU to run on")?)?;
        nix::sched::sched_setaffinity(this, &one)?;
        // The namespace's name is unique, and what bears it is cleaned up also after a test that was killed.
        let bpffs = Path::new(Bpffs::USUAL);
        let pins = Some(bpffs.join(netns.name()));
        let bpffs = Some(Bpffs::mount(bpffs)?);
        let options = LoadOptions { entries4: CAPACITY, entries6: CAPACITY, ifindexes: 64, pins };
        let datapath = Datapath::load(&options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let held = runtime.block_on(async { datapath.take_held_frames() })?;
        let (routes, still, counted) = (BTreeSet::new(), BTreeSet::new(), Cell::new(0));
        Ok(Self { netns, datapath, bpffs, held, runtime, routes, still, counted })
    }

    fn try_reset(&mut self, world: &World) -> Result<()> {
        for prefix in std::mem::take(&mut self.routes) {
            self.netns.ip(&format!("{}route del {prefix}", family(prefix)))?;
        }
        for ifindex in std::mem::take(&mut self.still) {
            self.set_forwarding(ifindex, true)?;
        }
        forget(&self.datapath.flows4, |_| true)?;
        forget(&self.datapath.flows6, |_| true)?;
        clear(&self.datapath.fragments4)?;
        clear(&self.datapath.fragments6)?;
        self.datapath.clear_counters()?;
        (0..).take(self.counted.get()).try_for_each(|counter| self.datapath.clear_rule_counter(counter))?;
        for (ifindex, config) in &world.ifaces {
            self.datapath.write_iface(*ifindex, config)?;
        }
        let mut host_ports = [0; 1024];
        for port in &world.host_ports {
            host_ports[usize::from(port / 64)] |= 1u64 << (port % 64);
        }
        self.datapath.write_host_ports(&host_ports)?;
        self.datapath.write_nat(0, &world.rules, &world.addresses)?;
        if !world.policy.is_empty() {
            self.datapath.write_policy(&world.policy)?;
        }
        self.datapath.write_control(&world.control)?;
        Ok(())
    }

    fn try_change(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Control(control) => self.datapath.write_control(control)?,
            Change::Policy(rules) => self.datapath.write_policy(&compiled(rules).0)?,
            Change::Route(prefix, way) => {
                self.routes.insert(prefix);
                set_route(self.netns, prefix, *way)?;
            }
            Change::Forwarding(ifindex, forwards) => {
                self.still.insert(*ifindex);
                self.set_forwarding(*ifindex, *forwards)?;
            }
            Change::ForgetResponders => {
                forget(&self.datapath.flows4, is_responder)?;
                forget(&self.datapath.flows6, is_responder)?;
            }
            Change::ForgetFlows => {
                forget(&self.datapath.flows4, |_| true)?;
                forget(&self.datapath.flows6, |_| true)?;
            }
        }
        Ok(())
    }

    fn set_forwarding(&self, ifindex: u32, forwards: bool) -> Result<()> {
        let (name, value) = (Port::of(ifindex).name, if forwards { "1" } else { "0" });
        let (v4, v6) = (format!("net.ipv4.conf.{name}.forwarding"), format!("net.ipv6.conf.{name}.forwarding"));
        self.netns.set_sysctls(&[(&v4, value), (&v6, value)])
    }
}

impl Drop for KernelBody<'_> {
    fn drop(&mut self) {
        // What is left then, is left; the test's own result counts.
        let _ = self.datapath.remove();
        let _ = self.bpffs.take().map(Bpffs::unmount_if_unused);
    }
}

/// A panic is the end of the test: what the kernel refuses here, no case can expect.
impl Body for KernelBody<'_> {
    fn reset(&mut self, world: &World) {
        self.try_reset(world).expect("cannot begin a case anew");
    }

    fn change(&mut self, change: &Change) {
        self.try_change(change).expect("cannot make a change");
    }

    fn wait(&mut self, ticks: Ticks) {
        // No kernel has fewer than 100 ticks a second.
        std::thread::sleep(Duration::from_millis(10) * ticks);
    }

    fn send(&mut self, ingress: u32, frame: &[u8]) -> Sent {
        let ran = self.datapath.run_frame(ingress, frame).expect("cannot run a frame");
        make_room(&self.datapath.flows4).expect("cannot free slots");
        make_room(&self.datapath.flows6).expect("cannot free slots");
        let action = match ran.action {
            forwarder::datapath::Action::Pass => Action::Pass,
            forwarder::datapath::Action::Drop => Action::Drop,
            forwarder::datapath::Action::Redirect => Action::Redirect,
            other => panic!("the datapath says {other:?}"),
        };
        Sent { action, frame: ran.frame }
    }

    fn counters(&self) -> Vec<Counter> {
        self.datapath.read_counters(MAX_IFACES).expect("cannot read counters")
    }

    fn rule_hits(&self, count: usize) -> Vec<Hits> {
        self.counted.update(|counted| counted.max(count));
        self.datapath
            .read_rule_counters(count)
            .expect("cannot read the rules' counters")
            .iter()
            .map(Hits::from)
            .collect()
    }

    fn flows(&self) -> Flows {
        let (mut v4, mut v6) = (all(&self.datapath.flows4), all(&self.datapath.flows6));
        v4.sort_by_key(|(key, _)| *key);
        v6.sort_by_key(|(key, _)| *key);
        let trips4 = v4.iter().map(|(key, entry)| self.datapath.flows4.round_trips(key, entry));
        let trips6 = v6.iter().map(|(key, entry)| self.datapath.flows6.round_trips(key, entry));
        Flows { measured: trips4.chain(trips6).map(measured).collect(), v4, v6 }
    }

    fn take_held(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        let mut all = Vec::new();
        self.runtime.block_on(async {
            // A frame that is there, is there at the first look.
            while let Ok(held) = tokio::time::timeout(Duration::ZERO, self.held.next_frame()).await {
                let held = held.expect("cannot wait for held frames");
                all.push((held.ingress, held.egress, held.frame));
            }
        });
        all
    }
}

fn all<K: Key>(table: &FlowTable<K>) -> Vec<(K, FlowEntry)> {
    let mut all = Vec::new();
    let collect = |seen: &Seen<K>| {
        all.push((seen.key, seen.entry.clone()));
        Ok(())
    };
    table.visit(collect).expect("cannot read flows");
    all
}

fn clear<K: Element, V: Value>(table: &Table<K, V>) -> Result<()> {
    let mut keys = Vec::new();
    table.visit(|key, _| {
        keys.push(*key);
        Ok(())
    })?;
    keys.iter().try_for_each(|key| Ok(table.remove(key).map(drop)?))
}

/// Frees what has been removed, also by the programs. No program runs now, so nobody has to be waited for.
fn make_room<K: Key>(table: &FlowTable<K>) -> Result<()> {
    table.vacate(&table.dying()?)?;
    Ok(())
}

fn forget<K: Key>(table: &FlowTable<K>, is_forgotten: fn(&FlowEntry) -> bool) -> Result<()> {
    let keys: Vec<_> = all(table).into_iter().filter(|(_, entry)| is_forgotten(entry)).map(|(key, _)| key).collect();
    table.remove(&keys)?;
    make_room(table)
}
