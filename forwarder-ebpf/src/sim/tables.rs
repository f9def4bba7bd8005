//! `Tables` over the fields of a `Sim`.

use super::{HANDSHAKES, Sim};
use crate::abi::firewall::{Line, RuleEvent, SourceCell, Unanswered};
use crate::abi::{
    Birth, Control, FlowEntry, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6, FragmentOwner4, FragmentOwner6,
};
use crate::abi::{HELD_FRAME_BYTES, Handshake, IfaceConfig, NatRule, Ticks};
use crate::flow_table;
use crate::tables::{Answer, Asked, Fate, FlowTable, FragmentTable, Judged, Refused, Route, RouteQuery, Tables};
use crate::wire::ipv4::Packet4;
use crate::wire::ipv6::Packet6;
use crate::wire::{Fragment, Transport};
use std::boxed::Box;
use std::rc::Rc;

macro_rules! flow_table {
    ($key:ty, $flows:ident) => {
        impl FlowTable<$key> for Sim {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<&FlowEntry> {
                self.$flows.find(key)
            }

            fn expect_flow(&self, key: &$key) {
                flow_table::expect(&self.$flows, key);
            }

            fn flow_nearby(&self, key: &$key) -> Option<&FlowEntry> {
                flow_table::find_nearby(&self.$flows, key).map(|slot| &slot.entry)
            }

            fn hash(&self, key: &$key) -> u64 {
                self.$flows.hash(key)
            }

            fn birth(&self, key: &$key) -> Option<&Birth> {
                self.$flows.birth(key)
            }

            fn insert_flow(&self, key: &$key, entry: &FlowEntry, birth: &Birth) -> Result<(), Refused> {
                if let Some(other) = self.state.race.take() {
                    other(self);
                }
                self.$flows.insert(key, entry, birth)
            }

            fn remove_flow(&self, key: &$key) {
                self.$flows.remove(key);
            }
        }
    };
}

flow_table!(FlowKey4, flows4);
flow_table!(FlowKey6, flows6);

macro_rules! fragment_table {
    ($key:ty, $owner:ty, $fragments:ident) => {
        impl FragmentTable<$key, $owner> for Sim {
            fn remember(&self, key: &$key, owner: &$owner) {
                self.$fragments.remember(key, owner);
            }

            fn owner(&self, key: &$key) -> Option<$owner> {
                self.$fragments.owner(key)
            }
        }
    };
}

fragment_table!(FragmentKey4, FragmentOwner4, fragments4);
fragment_table!(FragmentKey6, FragmentOwner6, fragments6);

impl Tables for Sim {
    type Packet4 = Box<Packet4>;
    type Packet6 = Box<Packet6>;
    type Policy = Rc<[Line]>;
    type Asked = Rc<Asked>;

    fn packet4(&self) -> Option<Box<Packet4>> {
        Some(Box::new(Packet4 {
            key: FlowKey4::default(),
            total: 0,
            ttl: 0,
            tos: 0,
            dont_fragment: false,
            id: [0; 2],
            fragment: Fragment::Whole,
            transport: Transport::Opaque,
            signal: 0,
            sequence: 0,
            l4: 0,
        }))
    }

    fn packet6(&self) -> Option<Box<Packet6>> {
        Some(Box::new(Packet6 {
            key: FlowKey6::default(),
            total: 0,
            hop_limit: 0,
            tos: 0,
            id: [0; 4],
            fragment: Fragment::Whole,
            transport: Transport::Opaque,
            signal: 0,
            sequence: 0,
            icmp_type: 0,
            l4: 0,
        }))
    }

    #[inline(always)]
    fn iface(&self, ifindex: u32) -> Option<&IfaceConfig> {
        self.ifaces.get(ifindex as usize)
    }

    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn nat_rule(&self, index: u32) -> Option<&NatRule> {
        self.nat_rules.get(index as usize)
    }

    fn nat_address(&self, index: u32) -> Option<[u8; 4]> {
        self.nat_addresses.get(index as usize).copied()
    }

    fn host_ports(&self, word: u32) -> u64 {
        self.host_ports.get(word as usize).copied().unwrap_or(0)
    }

    fn route4(&self, query: &RouteQuery<'_, [u8; 4]>) -> Route {
        self.route(query.ingress, self.fib4.look_up(query.destination))
    }

    fn route6(&self, query: &RouteQuery<'_, [u8; 16]>) -> Route {
        self.route(query.ingress, self.fib6.look_up(query.destination))
    }

    fn hold(&self, _ingress: u32) -> bool {
        // The frame itself is taken when the verdict is out; nothing writes it in between.
        self.state.length.get() <= HELD_FRAME_BYTES
    }

    fn random(&self) -> u32 {
        if let Some(number) = self.state.script.borrow_mut().pop_front() {
            return number;
        }
        // Marsaglia's xorshift, period 2^32 - 1.
        let mut number = self.state.seed.get();
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        self.state.seed.set(number);
        number
    }

    fn handshake(&self, index: u32) -> Option<&Handshake> {
        self.handshakes.get(index as usize % HANDSHAKES)
    }

    fn clock_us(&self) -> u32 {
        self.state.clock_us.get()
    }

    fn set_answer(&self, answer: Answer) {
        self.state.answer.set(Some(answer));
    }

    fn policy(&self) -> Option<Rc<[Line]>> {
        self.policy.clone()
    }

    fn unanswered(&self, group: u32) -> Option<&Unanswered> {
        self.unanswered.get(group as usize)
    }

    fn source_cell(&self, cell: u32) -> Option<&SourceCell> {
        self.sources.get(cell as usize)
    }

    fn source_past(&self, _: u32) -> u32 {
        // Nobody sweeps here.
        0
    }

    fn set_asked(&self, asked: &Asked) {
        self.state.asked.replace(Some(Rc::new(*asked)));
    }

    fn asked(&self) -> Option<Rc<Asked>> {
        self.state.asked.borrow().clone()
    }

    fn count_rule(&self, counter: u16, bytes: u32, now: Ticks) {
        self.count(counter, bytes, now);
    }

    fn log_rule(&self, event: &RuleEvent, now: Ticks, control: &Control) {
        let mut budget = self.state.log_budget.get();
        if budget.take(now, control.rule_logs_per_second, control.ticks_per_second) {
            self.rule_log.borrow_mut().push(*event);
        }
        self.state.log_budget.set(budget);
    }

    fn set_judged(&self, judged: Judged) {
        self.state.judged.set(judged);
    }

    fn judged(&self) -> Judged {
        self.state.judged.get()
    }

    fn answer(&self) -> Option<Answer> {
        self.state.answer.get()
    }

    fn take_icmp_token(&self, now: Ticks, control: &Control) -> bool {
        let (tokens, since) = (&self.state.tokens, &self.state.tokens_since);
        if now.wrapping_sub(since.get()) >= control.ticks_per_second || tokens.get() > control.icmp_per_second {
            since.set(now);
            tokens.set(control.icmp_per_second);
        }
        let left = tokens.get().checked_sub(1);
        tokens.set(left.unwrap_or(0));
        left.is_some()
    }
}

impl Sim {
    /// What becomes of a packet from `ingress` that has this route; remembers where it leaves, should it have to wait.
    fn route(&self, ingress: u32, route: Route) -> Route {
        if self.not_forwarding.contains(&ingress) {
            return Route::refusing(Fate::Disabled);
        }
        self.state.egress.set(route.ifindex);
        route
    }
}
