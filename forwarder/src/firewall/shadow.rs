//! Rules that are never met: because nothing fits them, or because earlier rules take all that does, one alone or several
//! together.
//!
//! A rule is a box of five sides. The compiled policy itself is asked who gets a packet in a corner of it: if the rule does, it
//! is met, and that is the end of nearly every question. If an earlier one does, that is cut out of the box, and what is
//! left over, at most five boxes, is asked about in turn.

use super::compile::{Matcher, compile};
use super::ranges::Ranges;
use crate::plan::FirewallPlan;
use forwarder_ebpf::abi::firewall::{Line, rule};
use forwarder_ebpf::sim::Sim;
use forwarder_ebpf::tables::Asked;
use std::collections::BTreeSet;

/// Boxes that are asked about for one rule; who needs more is taken to be met.
const MOST_BOXES: usize = 256;
/// Ranges that are looked at for all rules together, a question counting as [`QUESTION`]: a second or two. Ten thousand rules
/// that overlap a little need a fraction; large sets cut from one another could take minutes, and then the rest is taken to
/// be met.
const MOST_WORK: usize = 1 << 28;
const QUESTION: usize = 256;
/// Names in one sentence.
const MOST_NAMES: usize = 8;

/// Source, destination, service, origin, way.
type Sides = [Ranges; 5];

/// Why each rule is never met, by its place; none where that is not known. Compiles for itself.
pub fn unmet(plan: &FirewallPlan) -> Vec<Option<String>> {
    let counters: Vec<u16> = (0..).take(plan.matchers.len()).collect();
    let numbered = |(matcher, counter): (&Matcher, &u16)| {
        let word = matcher.word | u64::from(*counter) << rule::COUNTER_SHIFT;
        Matcher { word, ..matcher.clone() }
    };
    let matchers: Vec<_> = plan.matchers.iter().zip(&counters).map(numbered).collect();
    match compile(&matchers, u64::MAX) {
        Ok(compiled) => unmet_in(plan, &compiled.lines, &counters),
        // Then it is not going to be in force either.
        Err(_) => vec![None; plan.matchers.len()],
    }
}

/// The same with a policy that was compiled with these counters.
pub fn unmet_in(plan: &FirewallPlan, lines: &[Line], counters: &[u16]) -> Vec<Option<String>> {
    let explain = |(matcher, by): (&Matcher, Option<Vec<usize>>)| {
        if let Some(what) = empty_field(matcher) {
            return Some(format!("nothing has {what}"));
        }
        let by = by?;
        let mut names: Vec<_> = by.iter().map(|at| format!("`{}`", plan.rules[*at].name)).collect();
        let more = names.len().saturating_sub(MOST_NAMES);
        names.truncate(MOST_NAMES);
        Some(match names.as_slice() {
            [one] => format!("hidden by {one}"),
            several if more == 0 => format!("hidden by {} together", several.join(", ")),
            several => format!("hidden by {} and {more} more together", several.join(", ")),
        })
    };
    plan.matchers.iter().zip(hidden(&plan.matchers, lines, counters)).map(explain).collect()
}

/// For each rule those that take all that fits it, if there are such; empty for one that nothing fits.
pub fn hidden(matchers: &[Matcher], lines: &[Line], counters: &[u16]) -> Vec<Option<Vec<usize>>> {
    let mut sim = Sim::new();
    sim.set_policy(lines);
    let mut places = vec![usize::MAX; usize::from(counters.iter().copied().max().unwrap_or(0)) + 1];
    for (at, counter) in counters.iter().enumerate() {
        places[usize::from(*counter)] = at;
    }
    let mut search = Search { matchers, sim, places, work: MOST_WORK };
    (0..matchers.len()).map(|at| search.hiding(at)).collect()
}

/// What keeps a rule from matching anything at all.
fn empty_field(matcher: &Matcher) -> Option<&'static str> {
    let no_v4 = matcher.sources.v4.is_empty() || matcher.destinations.v4.is_empty();
    let no_v6 = matcher.sources.v6.is_empty() || matcher.destinations.v6.is_empty();
    match matcher {
        _ if matcher.sources.is_empty() => Some("its source"),
        _ if matcher.destinations.is_empty() => Some("its destination"),
        _ if no_v4 && no_v6 => Some("its source and destination, which are of different families"),
        _ if matcher.services.is_empty() => Some("its protocol and ports"),
        _ if matcher.origins.is_empty() => Some("its flags and source ports"),
        _ if matcher.ways.is_empty() => Some("its way: an interface that is named is not served"),
        _ => None,
    }
}

struct Search<'m> {
    matchers: &'m [Matcher],
    sim: Sim,
    /// Of rules, by counter.
    places: Vec<usize>,
    /// Ranges that may still be looked at.
    work: usize,
}

impl Search<'_> {
    /// Rules that together take all that fits the one at `at`. `None`: it is met, or that is not known.
    fn hiding(&mut self, at: usize) -> Option<Vec<usize>> {
        let mut by = BTreeSet::new();
        for is_ipv4 in [true, false] {
            self.cut(at, is_ipv4, &mut by)?;
        }
        // The first that takes a part is not always needed: a later one may take all alone.
        let alone = by.iter().copied().find(|earlier| self.covers(*earlier, at));
        Some(alone.map_or_else(|| by.into_iter().collect(), |one| vec![one]))
    }

    /// Cuts out of a rule what earlier ones take; `None` when something is left.
    fn cut(&mut self, at: usize, is_ipv4: bool, by: &mut BTreeSet<usize>) -> Option<()> {
        let mut boxes = vec![sides(&self.matchers[at], is_ipv4)];
        let mut asked = 0;
        while let Some(mut here) = boxes.pop() {
            let Some(corner) = corner(&here) else { continue };
            self.work = self.work.checked_sub(QUESTION)?;
            let taker = self.taker(&corner, is_ipv4)?;
            asked += 1;
            if taker >= at || asked > MOST_BOXES {
                return None;
            }
            by.insert(taker);
            let other = sides(&self.matchers[taker], is_ipv4);
            for side in 0..here.len() {
                let ranges = here[side].as_slice().len() + other[side].as_slice().len();
                self.work = self.work.checked_sub(ranges)?;
                let rest = here[side].without(&other[side]);
                if rest.is_empty() {
                    continue;
                }
                let common = here[side].without(&rest);
                boxes.push(with(&here, side, rest));
                here[side] = common;
            }
        }
        Some(())
    }

    /// The first rule that a packet meets.
    fn taker(&self, packet: &[u128; 5], is_ipv4: bool) -> Option<usize> {
        let halves = |address: u128| [(address >> 64) as u64, address as u64];
        let [service, origin, way] = [packet[2], packet[3], packet[4]].map(|number| number as u64);
        let (source, destination) = (halves(packet[0]), halves(packet[1]));
        let purpose = Asked::BEGINS;
        let asked = Asked { source, destination, service, origin, way, bytes: 0, purpose, zero: [0; 3] };
        let word = self.sim.rule_word(&asked, is_ipv4)?;
        self.places.get(usize::from((word >> rule::COUNTER_SHIFT) as u16)).copied().filter(|at| *at != usize::MAX)
    }

    /// Whether `earlier` takes all that `later` fits.
    fn covers(&mut self, earlier: usize, later: usize) -> bool {
        [true, false].into_iter().all(|is_ipv4| {
            let (own, other) = (sides(&self.matchers[earlier], is_ipv4), sides(&self.matchers[later], is_ipv4));
            // Of a family that one end has none of, nothing comes.
            corner(&other).is_none() || own.iter().zip(&other).all(|(own, other)| own.covers(other))
        })
    }
}

fn sides(matcher: &Matcher, is_ipv4: bool) -> Sides {
    let (sources, destinations) = (&matcher.sources, &matcher.destinations);
    let [source, destination] = match is_ipv4 {
        true => [&sources.v4, &destinations.v4],
        false => [&sources.v6, &destinations.v6],
    };
    [source, destination, &matcher.services, &matcher.origins, &matcher.ways].map(Clone::clone)
}

/// The lowest packet in a box. `None`: nothing is in it.
fn corner(sides: &Sides) -> Option<[u128; 5]> {
    let mut corner = [0; 5];
    for (at, side) in corner.iter_mut().zip(sides) {
        *at = side.as_slice().first()?.0;
    }
    Some(corner)
}

fn with(sides: &Sides, side: usize, ranges: Ranges) -> Sides {
    let mut other = sides.clone();
    other[side] = ranges;
    other
}
