//! Source NAT for IPv4: which flows are translated, to which address and port.
//!
//! Endpoint-dependent mapping (RFC 4787 §4.1 calls it address and port-dependent): a public port is taken per remote
//! endpoint, so one address serves as many connections to *each* remote as it has ports. The responder's flow entry is the
//! reservation; there is no other list of ports. An inside host keeps one address of its pool (RFC 4787 REQ-2), and its own
//! port where that is free.

use crate::abi::{Control, FlowEntry, FlowKey, FlowKey4, MAX_NAT_ADDRESSES, MAX_NAT_RULES, NatAction, NatRule};
use crate::abi::{PORT_ATTEMPTS, Side, status};
use crate::conntrack::State;
use crate::tables::{FlowTable, Tables};

/// What the source NAT rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// No rule names it.
    Unnamed,
    /// A rule exempts it.
    Exempt,
    /// It is to get this public address.
    Public([u8; 4]),
}

/// Is this entry's flow translated in either direction?
#[inline(always)]
pub(crate) fn is_translated(entry: &FlowEntry) -> bool {
    entry.status.load() & (status::SOURCE_NAT | status::DESTINATION_NAT) != 0
}

/// Does source NAT apply between these sides at all?
#[inline(always)]
pub(crate) fn applies(ingress: u8, egress: u8) -> bool {
    ingress & Side::Inside as u8 != 0 && egress & Side::Outside as u8 != 0
}

/// First match of the rules on a flow's first packet.
#[inline(always)]
pub(crate) fn source<T: Tables>(tables: &T, control: &Control, key: &FlowKey4) -> Source {
    let from = u32::from_ne_bytes(key.source);
    let to = u32::from_ne_bytes(key.destination);
    let bank = control.nat_bank & 1;
    let mut index = 0;
    while index < MAX_NAT_RULES && index < control.nat_rules {
        let Some(rule) = tables.nat_rule(bank * MAX_NAT_RULES + index) else { break };
        let from_matches = from & u32::from_ne_bytes(rule.from_mask) == u32::from_ne_bytes(rule.from);
        if from_matches && to & u32::from_ne_bytes(rule.to_mask) == u32::from_ne_bytes(rule.to) {
            return pick_address(tables, bank, rule, from);
        }
        index += 1;
    }
    Source::Unnamed
}

#[inline(always)]
fn pick_address<T: Tables>(tables: &T, bank: u32, rule: &NatRule, from: u32) -> Source {
    if rule.action != NatAction::Translate as u32 || rule.addresses == 0 {
        return Source::Exempt;
    }
    // Fibonacci hashing spreads neighbouring hosts over the pool.
    let spread = from.swap_bytes().wrapping_mul(0x9e37_79b1) >> 16;
    let index = (u32::from(rule.first_address) + spread % u32::from(rule.addresses)) % MAX_NAT_ADDRESSES;
    match tables.nat_address(bank * MAX_NAT_ADDRESSES + index) {
        Some(address) => Source::Public(address),
        None => Source::Exempt,
    }
}

/// Never a candidate: port 0 means "none" in TCP and UDP.
const NO_PORT: u16 = 0;

/// Finds a public port for the flow whose answers carry `answer`; sets it there. Tries the flow's own port, then up to
/// `PORT_ATTEMPTS` pseudo-random ones in the range; the first closing connection met on the way gives up its port when all
/// else is taken. False: none was found. True is not yet a promise: the insertion decides. `keeps` the own port: not when
/// an insertion has just found out that a port was taken which had seemed free, since it would seem so again.
#[inline(always)]
pub(crate) fn find_port<T: Tables>(
    tables: &T,
    control: &Control,
    answer: &mut FlowKey4,
    (own, keeps): ([u8; 2], bool),
) -> bool {
    let span = u32::from(control.port_last.wrapping_sub(control.port_first)) + 1;
    let random = tables.random();
    let any = |number: u32| control.port_first.wrapping_add((number % span) as u16);
    let mut candidate = if keeps { u16::from_be_bytes(own) } else { any(random >> 8) };
    // Not an `Option`: what it would leave undefined, see `Verdict`.
    let mut reclaimable = NO_PORT;
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        if may_use(tables, control, candidate) {
            answer.destination_port = candidate.to_be_bytes();
            match FlowTable::<FlowKey4>::flow_nearby(tables, answer) {
                None => return true,
                Some(entry) => {
                    if reclaimable == NO_PORT && is_closing(answer.protocol, entry) {
                        reclaimable = candidate;
                    }
                }
            }
        }
        // The low bits choose where to begin, the high ones how far to jump; an odd jump never comes back soon.
        let jump = (random >> 16) | 1;
        candidate = any((random & 0xffff).wrapping_add(attempt * jump));
        attempt += 1;
    }
    if reclaimable == NO_PORT {
        return false;
    }
    answer.destination_port = reclaimable.to_be_bytes();
    remove_pair(tables, answer);
    true
}

#[inline(always)]
fn may_use<T: Tables>(tables: &T, control: &Control, port: u16) -> bool {
    let host = tables.host_ports(u32::from(port) / 64) >> (port % 64) & 1;
    port >= control.port_first && port <= control.port_last && host == 0
}

#[inline(always)]
fn is_closing(protocol: u8, entry: &FlowEntry) -> bool {
    State::of(protocol, entry.status.load()) == State::Closing
}

/// Removes a connection by the responder's key: the originator's entry first, so that no packet leaves whose answer would
/// find nothing.
#[inline(always)]
fn remove_pair<T: Tables>(tables: &T, responder: &FlowKey4) {
    if let Some(entry) = FlowTable::<FlowKey4>::flow(tables, responder) {
        tables.remove_flow(&responder.partner(entry));
    }
    tables.remove_flow(responder);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Birth, SharedU32};
    use crate::sim::Sim;
    use crate::wire::protocol;

    const ANSWER: FlowKey4 = FlowKey4 {
        source: [203, 0, 113, 1],
        destination: [198, 51, 100, 1],
        source_port: [0, 53],
        destination_port: [0; 2],
        protocol: protocol::TCP,
        side: Side::Outside as u8,
        zero: [0; 2],
    };

    fn ports(first: u16, last: u16) -> Sim {
        Sim::new().control(|control| (control.port_first, control.port_last) = (first, last))
    }

    /// Finds a port and takes it, as a flow with these bits would.
    fn take(sim: &Sim, own: u16, bits: u32) -> Option<u16> {
        let mut answer = ANSWER;
        let found = find_port(sim, &sim.control_now(), &mut answer, (own.to_be_bytes(), true));
        let entry = FlowEntry { status: SharedU32::new(bits), ..FlowEntry::default() };
        found.then(|| {
            sim.flows4.insert(&answer, &entry, &Birth::default()).expect("what was found is free");
            u16::from_be_bytes(answer.destination_port)
        })
    }

    #[test]
    fn the_own_port_is_kept_while_it_is_free_and_in_the_range() {
        let sim = ports(1000, 1999);
        assert_eq!(take(&sim, 1500, 0), Some(1500));
        let other = take(&sim, 1500, 0).expect("999 are left");
        assert!((1000..2000).contains(&other) && other != 1500);
        let inside = take(&sim, 80, 0).expect("998 are left");
        assert!((1000..2000).contains(&inside));
    }

    #[test]
    fn every_port_of_a_small_range_is_found_whatever_the_dice_say() {
        for dice in [0, 1, 0xffff, 0x1_0000, 0xffff_0000, u32::MAX, 0x8000_8000] {
            let sim = ports(2000, 2031).random_numbers(std::vec![dice; 33]);
            let mut taken: std::vec::Vec<_> = (0..32).map(|_| take(&sim, 1, 0).expect("one is left")).collect();
            taken.sort_unstable();
            assert!(taken.iter().copied().eq(2000..2032), "{dice:#x}: {taken:?}");
            assert_eq!(take(&sim, 1, 0), None);
        }
    }

    #[test]
    fn the_whole_range_of_ports_works() {
        let sim = ports(0, u16::MAX);
        assert_eq!(take(&sim, 0, 0), Some(0));
        assert!(take(&sim, 0, 0).is_some_and(|port| port != 0));
    }

    #[test]
    fn the_hosts_ports_are_left_to_it() {
        let sim = ports(3000, 3003).host_port(3000).host_port(3002);
        let mut taken = [take(&sim, 3000, 0), take(&sim, 3000, 0)];
        taken.sort_unstable();
        assert_eq!((taken, take(&sim, 3000, 0)), ([Some(3001), Some(3003)], None));
    }

    #[test]
    fn a_closing_connection_gives_up_its_port_when_all_are_taken() {
        let sim = ports(4000, 4001);
        let closing = status::RESET;
        assert_eq!((take(&sim, 4000, closing), take(&sim, 4001, 0)), (Some(4000), Some(4001)));
        assert_eq!(take(&sim, 4001, 0), Some(4000));
        assert_eq!(take(&sim, 4000, 0), None);
        assert_eq!(sim.flows4.all().len(), 2);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |from: [u8; 4], to: [u8; 4], action, first_address, addresses| NatRule {
            from,
            from_mask: [255, 255, 255, 0],
            to,
            to_mask: if to == [0; 4] { [0; 4] } else { [255, 0, 0, 0] },
            first_address,
            addresses,
            action: action as u32,
        };
        let rules = [
            rule([10, 0, 1, 0], [192, 0, 0, 0], NatAction::Exempt, 0, 0),
            rule([10, 0, 1, 0], [0; 4], NatAction::Translate, 1, 2),
            rule([10, 0, 2, 0], [0; 4], NatAction::Translate, 0, 0),
        ];
        let sim = Sim::new().nat(0, &rules, &[[9; 4], [1; 4], [2; 4]]);
        let ask = |source, destination| {
            let key = FlowKey4 { source, destination, ..FlowKey4::default() };
            super::source(&sim, &sim.control_now(), &key)
        };
        assert_eq!(ask([10, 0, 1, 1], [192, 9, 9, 9]), Source::Exempt);
        let pool = (1..=50).map(|host| ask([10, 0, 1, host], [8; 4])).collect::<std::vec::Vec<_>>();
        assert!(pool.contains(&Source::Public([1; 4])) && pool.contains(&Source::Public([2; 4])));
        assert!(pool.iter().all(|source| [Source::Public([1; 4]), Source::Public([2; 4])].contains(source)));
        assert_eq!(ask([10, 0, 1, 7], [8; 4]), ask([10, 0, 1, 7], [9; 4]));
        assert_eq!(ask([10, 0, 2, 1], [8; 4]), Source::Exempt);
        assert_eq!(ask([10, 0, 3, 1], [8; 4]), Source::Unnamed);
        let other_bank = Sim::new().nat(1, &rules, &[[9; 4]; 3]);
        let key = FlowKey4 { source: [10, 0, 1, 1], destination: [8; 4], ..FlowKey4::default() };
        assert_eq!(super::source(&other_bank, &other_bank.control_now(), &key), Source::Unnamed);
    }
}
