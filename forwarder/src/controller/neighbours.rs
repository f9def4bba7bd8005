//! Neighbours: found for frames that wait, and checked for flows that use them.
//!
//! Packets that XDP forwards never touch the kernel's neighbour entries, so nobody but us has the kernel ask for one, and
//! nobody but us notices that a silent next hop has changed its address.

use super::Controller;
use crate::datapath::{DatapathError, Held};
use crate::unreachable;
use crate::waiting::{Admitted, NextHop, count_by_ingress, send_again};
use forwarder_ebpf::verdict::Drop;
use std::time::Instant;

impl Controller {
    /// A frame has no link-layer address to go to.
    pub(super) async fn handle_held(&mut self, held: Held) {
        let (ifindex, address) = (held.egress, held.next_hop);
        if self.is_usable((ifindex, address)) {
            // Found while the frame was on its way to us; its flow asks the FIB anew.
            return self.send_all(vec![held]);
        }
        match self.waiting.admit(held.clone(), Instant::now()) {
            Admitted::Queued => {}
            Admitted::Refused => self.count_drops(&[held]),
            Admitted::First => {
                let asked = self.netlink.resolve(ifindex, address).await;
                self.log_failure(&format!("have the kernel find {address}"), asked);
            }
        }
    }

    /// A neighbour has changed: frames that wait for it go, if it can be reached now.
    pub(super) async fn handle_neighbour(&mut self, next_hop: NextHop) {
        if self.is_usable(next_hop) {
            let frames = self.waiting.release(next_hop);
            self.send_all(frames);
        }
    }

    /// After changes that are not known one by one.
    pub(super) fn send_all_that_can_be(&mut self) {
        for next_hop in self.waiting.next_hops() {
            if self.is_usable(next_hop) {
                let frames = self.waiting.release(next_hop);
                self.send_all(frames);
            }
        }
    }

    /// What has waited too long is dropped, counted where it came in, and its sender told.
    pub(super) fn give_up_waiting(&mut self) {
        // An answer may have come without a word about it, when it changed nothing that flows depend on.
        self.send_all_that_can_be();
        let now = Instant::now();
        let frames = self.waiting.give_up(now);
        self.count_drops(&frames);
        for held in &frames {
            let told = self.tell_sender(held, now);
            self.log_failure("tell a sender that its next hop does not answer", told);
        }
    }

    fn tell_sender(&mut self, held: &Held, now: Instant) -> Result<(), DatapathError> {
        let own = self.live.datapath().read_iface(held.ingress)?;
        match own.and_then(|own| unreachable::answer(&held.frame, &own)) {
            Some(answer) if self.answers.take(now) => self.socket.send(held.ingress, &answer),
            _ => Ok(()),
        }
    }

    /// Has the kernel confirm neighbours that it has not heard of for a while and that flows send to.
    pub(super) async fn probe_stale_next_hops(&mut self) {
        let used = self.live.census().next_hops.clone();
        for (ifindex, address, mac) in self.netlink.stale() {
            if u16::try_from(ifindex).is_ok_and(|ifindex| used.contains(&(ifindex, mac))) {
                let asked = self.netlink.resolve(ifindex, address).await;
                self.log_failure(&format!("have the kernel confirm {address}"), asked);
            }
        }
    }

    fn is_usable(&self, (ifindex, address): NextHop) -> bool {
        self.netlink.neighbour(ifindex, address).is_some_and(|neighbour| neighbour.is_usable())
    }

    fn send_all(&self, frames: Vec<Held>) {
        for held in &frames {
            let sent = send_again(self.live.datapath(), &self.socket, held);
            self.log_failure("send a held frame", sent);
        }
    }

    /// For `status` and for flow logs.
    fn count_drops(&self, frames: &[Held]) {
        self.live.given_up().add(frames, Instant::now());
        let mut view = self.live.view();
        for (ifindex, count) in count_by_ingress(frames) {
            let Some(name) =
                view.served.iter().find(|served| served.ifindex == ifindex).map(|served| served.name.clone())
            else {
                continue;
            };
            let drops = view.own_drops.entry(name).or_default().entry(Drop::NeighbourUnknown).or_default();
            drops.packets += count.packets;
            drops.bytes += count.bytes;
        }
    }
}
