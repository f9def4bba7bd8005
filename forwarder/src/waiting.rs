//! Frames that wait for their next hop's link-layer address: sent again through the datapath when it is known, given up
//! after three seconds, as the kernel gives up its own (`mcast_solicit` and `ucast_solicit`, 3 each); see
//! [`crate::unreachable`] for what their senders are told then.
//!
//! A frame that is sent again runs through the datapath's own program, which translates and counts it as any other; only
//! the sending is done here, over a packet socket.

use crate::datapath::{Action, Datapath, Held, PacketSocket};
use crate::measure::rates::Count;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a frame waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// Frames that wait for one next hop (the kernel's `unres_qlen_bytes` is about as much).
const PER_NEXT_HOP: usize = 128;
/// Next hops that are waited for.
const NEXT_HOPS: usize = 1024;

/// A next hop: interface index and address.
pub type NextHop = (u32, IpAddr);

#[derive(Debug)]
struct Queue {
    since: Instant,
    frames: Vec<Held>,
}

/// All that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    queues: HashMap<NextHop, Queue>,
}

/// What is to be done for a frame that came to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Its next hop is new here: the kernel has to be asked to find it.
    First,
    /// Others wait for the same.
    Queued,
    /// There is no room.
    Refused,
}

impl Waiting {
    /// Takes a frame in.
    pub fn admit(&mut self, held: Held, now: Instant) -> Admitted {
        let next_hop = (held.egress, held.next_hop);
        let known = self.queues.contains_key(&next_hop);
        if !known && self.queues.len() >= NEXT_HOPS {
            return Admitted::Refused;
        }
        let queue = self.queues.entry(next_hop).or_insert_with(|| Queue { since: now, frames: Vec::new() });
        if queue.frames.len() >= PER_NEXT_HOP {
            return Admitted::Refused;
        }
        queue.frames.push(held);
        if known { Admitted::Queued } else { Admitted::First }
    }

    /// Frames that wait for this next hop, in their order.
    pub fn release(&mut self, next_hop: NextHop) -> Vec<Held> {
        self.queues.remove(&next_hop).map(|queue| queue.frames).unwrap_or_default()
    }

    /// Next hops that are waited for.
    pub fn next_hops(&self) -> Vec<NextHop> {
        self.queues.keys().copied().collect()
    }

    /// Frames that have waited long enough.
    pub fn give_up(&mut self, now: Instant) -> Vec<Held> {
        let over: Vec<_> = self
            .queues
            .extract_if(|_, queue| now.duration_since(queue.since) >= PATIENCE)
            .map(|(_, queue)| queue)
            .collect();
        over.into_iter().flat_map(|queue| queue.frames).collect()
    }
}

/// Sums of frames by ingress interface.
pub fn count_by_ingress(frames: &[Held]) -> HashMap<u32, Count> {
    let mut counts: HashMap<u32, Count> = HashMap::new();
    for held in frames {
        let count = counts.entry(held.ingress).or_default();
        count.packets += 1;
        count.bytes += held.frame.len() as u64;
    }
    counts
}

/// Runs a frame through the datapath again and sends what comes out.
///
/// # Errors
/// When the kernel refuses to run or to send it.
pub fn send_again(
    datapath: &Datapath,
    socket: &PacketSocket,
    held: &Held,
) -> Result<(), crate::datapath::DatapathError> {
    let ran = datapath.run_frame(held.ingress, &held.frame)?;
    match ran.action {
        Action::Redirect => socket.send(egress_of(held, &ran.frame), &ran.frame),
        // Dropped or held again, and counted as such by the datapath; the host gets nothing twice.
        _ => Ok(()),
    }
}

/// The interface that a frame is to leave by: where it came from if it is an answer, which has the station's address there
/// as its source.
fn egress_of(held: &Held, out: &[u8]) -> u32 {
    if out.get(6..12) == held.frame.get(..6) { held.ingress } else { held.egress }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(egress: u32, last: u8) -> Held {
        Held { ingress: 1, egress, next_hop: IpAddr::from([192, 0, 2, last]), frame: vec![last; 60] }
    }

    #[test]
    fn frames_wait_in_order_for_their_next_hop() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.admit(held(2, 1), now), Admitted::First);
        assert_eq!(waiting.admit(held(2, 1), now), Admitted::Queued);
        assert_eq!(waiting.admit(held(3, 1), now), Admitted::First, "the same address on another link");
        assert_eq!(waiting.release((2, IpAddr::from([192, 0, 2, 1]))).len(), 2);
        assert!(waiting.release((2, IpAddr::from([192, 0, 2, 1]))).is_empty());
        assert_eq!(waiting.next_hops().len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for _ in 0..PER_NEXT_HOP {
            assert_ne!(waiting.admit(held(2, 1), now), Admitted::Refused);
        }
        assert_eq!(waiting.admit(held(2, 1), now), Admitted::Refused);
        for egress in 3..NEXT_HOPS as u32 + 2 {
            assert_eq!(waiting.admit(held(egress, 1), now), Admitted::First);
        }
        assert_eq!(waiting.admit(held(9999, 1), now), Admitted::Refused);
    }

    #[test]
    fn an_answer_goes_back() {
        let held = Held { frame: (0..60).collect(), ..held(2, 1) };
        let answer = [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 8, 0];
        assert_eq!(egress_of(&held, &answer), 1);
        assert_eq!(egress_of(&held, &[0; 60]), 2);
    }

    #[test]
    fn patience_ends() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.admit(held(2, 1), now);
        waiting.admit(held(2, 2), now + PATIENCE);
        let given_up = waiting.give_up(now + PATIENCE);
        assert_eq!(count_by_ingress(&given_up)[&1], Count { packets: 1, bytes: 60 });
        assert_eq!(waiting.next_hops().len(), 1);
    }
}
