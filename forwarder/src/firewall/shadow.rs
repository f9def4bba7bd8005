//! Rules that are never met: because nothing fits them, or because an earlier rule takes all that does.
//!
//! Only one rule that hides another is looked for; several that do it together are not found.

use super::compile::Matcher;
use super::ranges::Ranges;
use crate::plan::FirewallPlan;

/// Why each rule is never met, by its place; none where that is not known.
pub fn unmet(plan: &FirewallPlan) -> Vec<Option<String>> {
    let index = Index::of(&plan.matchers);
    let explain = |(at, matcher): (usize, &Matcher)| {
        if let Some(what) = empty_field(matcher) {
            return Some(format!("nothing has {what}"));
        }
        let by = index.hidden_by(&plan.matchers, at)?;
        Some(format!("hidden by `{}`", plan.rules.get(by)?.name))
    };
    plan.matchers.iter().enumerate().map(explain).collect()
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

/// Whether `earlier` takes all that `later` fits.
fn covers(earlier: &Matcher, later: &Matcher) -> bool {
    let both = |family: fn(&Matcher) -> [&Ranges; 2]| {
        let ([source, destination], [later_source, later_destination]) = (family(earlier), family(later));
        // Of a family that one end has none of, nothing comes.
        later_source.is_empty()
            || later_destination.is_empty()
            || (source.covers(later_source) && destination.covers(later_destination))
    };
    earlier.services.covers(&later.services)
        && earlier.origins.covers(&later.origins)
        && earlier.ways.covers(&later.ways)
        && both(|matcher| [&matcher.sources.v4, &matcher.destinations.v4])
        && both(|matcher| [&matcher.sources.v6, &matcher.destinations.v6])
}

/// For each rule those that have the first service and the first way of it: few enough to be compared in full.
struct Index {
    services: Vec<(u128, Vec<u64>)>,
}

impl Index {
    fn of(matchers: &[Matcher]) -> Self {
        let mut events: Vec<(u128, usize)> = Vec::new();
        for (at, matcher) in matchers.iter().enumerate() {
            for (first, last) in matcher.services.as_slice() {
                events.push((*first, at));
                events.push((last + 1, at));
            }
        }
        events.sort_unstable();
        let mut bits = vec![0u64; matchers.len().div_ceil(64)];
        let mut services = Vec::new();
        for here in events.chunk_by(|one, other| one.0 == other.0) {
            here.iter().for_each(|(_, rule)| bits[rule / 64] ^= 1 << (rule % 64));
            services.push((here[0].0, bits.clone()));
        }
        Self { services }
    }

    fn hidden_by(&self, matchers: &[Matcher], at: usize) -> Option<usize> {
        let later = &matchers[at];
        let (first, _) = later.services.as_slice().first()?;
        let place = self.services.partition_point(|(start, _)| start <= first).checked_sub(1)?;
        let (_, bits) = &self.services[place];
        let rules = bits.iter().enumerate().take(at / 64 + 1);
        let mut candidates = rules
            .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit));
        candidates.find(|earlier| *earlier < at && covers(&matchers[*earlier], later))
    }
}
