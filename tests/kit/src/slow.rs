//! A slow wire: what a host sends arrives later. Where the kernel has `netem` that does the same; not every one has it.
//!
//! ```text
//! the host's stack --- default routes ---> slow === slow-end ---> a thread that lets each frame wait ---> eth0
//! ```
//!
//! What it receives comes by `eth0` as before. `slow` has its address, so that frames need no change.

use crate::netns::Netns;
use crate::run::run;
use crate::sniff::{Sniffer, mac};
use crate::topology::link;
use anyhow::{Context, Result};
use nix::unistd::gettid;
use std::collections::VecDeque;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the thread may take to see that it is to end.
const IDLE: Duration = Duration::from_millis(50);

/// As long as it lives, frames are slow; then they are lost.
#[derive(Debug)]
pub struct SlowWire {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowWire {
    /// What the host sends by its default routes, over `eth0`, leaves `delay` later. Its routers have to be in its neighbour
    /// table.
    ///
    /// # Errors
    /// The command that failed.
    pub fn of(netns: &Netns, delay: Duration) -> Result<Self> {
        link((netns, "slow"), (netns, "slow-end"), 1500, 1)?;
        let own = mac(netns, "eth0")?.map(|byte| format!("{byte:02x}")).join(":");
        netns.ip(&format!("link set slow address {own}"))?;
        // Answers come by another way than that by which the questions leave.
        netns.set_sysctls(&[("net.ipv4.conf.all.rp_filter", "0"), ("net.ipv4.conf.eth0.rp_filter", "0")])?;
        for (family, inet) in [("-4", "inet"), ("-6", "inet6")] {
            let router = word_after("via", &netns.ip(&format!("{family} route show default"))?)?;
            let address = word_after("lladdr", &netns.ip(&format!("neighbour show {router} dev eth0"))?)?;
            let source = word_after(inet, &netns.ip(&format!("{family} -o address show dev eth0 scope global"))?)?;
            let source = source.split('/').next().unwrap_or_default();
            // Only the link-layer address goes on the wire, and IPv6 takes no router from another interface's network.
            let by = if family == "-4" { router.as_str() } else { "fe80::1" };
            netns.ip(&format!("neighbour replace {by} lladdr {address} dev slow nud permanent"))?;
            netns.ip(&format!("{family} route del default"))?;
            netns.ip(&format!("{family} route add default via {by} dev slow onlink src {source}"))?;
        }
        let (from, to) = (Sniffer::open(netns, "slow-end")?, Sniffer::open(netns, "eth0")?);
        let ends = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let ends = ends.clone();
            move || {
                be_real_time();
                // An interface that is gone ends it: the namespace was removed.
                drop(carry(&from, &to, delay, &ends));
            }
        });
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for SlowWire {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has no result.
            let _ = thread.join();
        }
    }
}

/// Has the calling thread run before all others, so that on a busy machine a frame is not later than it is to be.
fn be_real_time() {
    // Without the right to do so nothing changes.
    let _ = run(Command::new("chrt").args(["--fifo", "--pid", "1", &gettid().to_string()]));
}

fn carry(from: &Sniffer, to: &Sniffer, delay: Duration, ends: &AtomicBool) -> Result<()> {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    while !ends.load(Ordering::Relaxed) {
        let next = waiting.front().map_or(IDLE, |(due, _)| due.saturating_duration_since(Instant::now()));
        let unicast = |frame: &[u8]| frame.first().is_some_and(|byte| byte & 1 == 0);
        if let Some(captured) = from.next(next.min(IDLE))?
            && !captured.outgoing
            && unicast(&captured.frame)
        {
            waiting.push_back((Instant::now() + delay, captured.frame));
        }
        while let Some((_, frame)) = waiting.pop_front_if(|(due, _)| *due <= Instant::now()) {
            to.inject(&frame)?;
        }
    }
    Ok(())
}

fn word_after(word: &str, text: &str) -> Result<String> {
    let mut words = text.split_whitespace().skip_while(|other| *other != word);
    words.nth(1).map(str::to_owned).with_context(|| format!("no `{word}` in {text}"))
}

#[cfg(test)]
mod tests {
    use super::SlowWire;
    use crate::Topology;
    use crate::topology::{Options, Shape};
    use std::time::Duration;

    /// One-armed, the client's IPv6 router is the world, which needs no forwarder to answer.
    #[test]
    fn what_is_sent_arrives_later() {
        let topology = Topology::new(Options { shape: Shape::OneArmed, ..Options::default() }).unwrap();
        for address in ["203.0.113.1", "2001:db8:3::1"] {
            topology.server.run("ping", &format!("-c 2 -i 0.1 -W 2 -q {address}")).unwrap();
        }
        let _wire = SlowWire::of(&topology.server, Duration::from_millis(40)).unwrap();
        for address in ["198.51.100.1", "2001:db8:1:ff::1"] {
            let text = topology.server.run("ping", &format!("-c 3 -i 0.1 -W 2 -q {address}")).unwrap();
            let (_, times) = text.split_once("= ").unwrap();
            let shortest: f64 = times.split('/').next().unwrap().parse().unwrap();
            assert!((40.0..75.0).contains(&shortest), "{text}");
        }
    }
}
