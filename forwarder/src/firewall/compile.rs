//! From matchers to the lines that the datapath reads: see `forwarder_ebpf::abi::firewall` for what they mean. Pure, and
//! proven against a matcher that goes through the rules one by one (tests/tests/firewall_oracle.rs).
//!
//! Each field is swept once: at every number where a rule's range begins or ends, the set of rules that are met from there on
//! is a class. A set of rules is known by the XOR of a random number for each, so that an interval costs no more than the
//! ranges that begin or end there, however many rules there are.

use super::ranges::{Addresses, Ranges};
use forwarder_ebpf::abi::firewall::{LINE_WORDS, Line, MAX_RULES, header, tree};
use std::collections::HashMap;

/// A rule as numbers. It matches what is in all five.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    /// Source addresses.
    pub sources: Addresses,
    /// Destination addresses.
    pub destinations: Addresses,
    /// Protocols with destination ports, or ICMP types with codes.
    pub services: Ranges,
    /// TCP flags with source ports.
    pub origins: Ranges,
    /// Interfaces, translated or not.
    pub ways: Ranges,
    /// What it does, see `abi::firewall::rule`.
    pub word: u64,
}

/// A policy as the datapath takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Its lines.
    pub lines: Vec<Line>,
    /// Sets of rules that are told apart.
    pub classes: usize,
    /// Intervals in all trees.
    pub intervals: usize,
}

impl Compiled {
    /// Memory that it takes in the kernel, bytes.
    pub fn bytes(&self) -> u64 {
        (self.lines.len() * size_of::<Line>()) as u64
    }
}

/// Why rules make no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Too many.
    #[error("there are {0} firewall rules, and at most {MAX_RULES} fit; join or remove some")]
    TooManyRules(usize),
    /// Too many intervals.
    #[error("the firewall's addresses make {0} intervals, and at most 16,777,215 fit; join or remove prefixes")]
    TooManyIntervals(usize),
    /// Too much memory.
    #[error(
        "the firewall's rules take {} in the kernel, and {} are allowed; join rules or prefixes, or raise \
         firewall.max_memory", crate::config::units::bytes_text(*needed), crate::config::units::bytes_text(*allowed)
    )]
    TooLarge {
        /// Bytes.
        needed: u64,
        /// Bytes.
        allowed: u64,
    },
}

/// Compiles; the first matcher that matches wins. `allowed` bytes are the most that it may take.
///
/// # Errors
/// When it does not fit.
pub fn compile(matchers: &[Matcher], allowed: u64) -> Result<Compiled, CompileError> {
    if matchers.len() > MAX_RULES as usize {
        return Err(CompileError::TooManyRules(matchers.len()));
    }
    let mut classes = Classes::new(matchers.len());
    let v4 = sweep_pair(&mut classes, matchers, |addresses| &addresses.v4);
    let v6 = sweep_pair(&mut classes, matchers, |addresses| &addresses.v6);
    let fields: [fn(&Matcher) -> &Ranges; 3] =
        [|matcher| &matcher.services, |matcher| &matcher.origins, |matcher| &matcher.ways];
    let simple = fields.map(|field| narrow(&sweep(&mut classes, matchers, field)));
    let intervals = v4.len() + v6.len() + simple.iter().map(Vec::len).sum::<usize>();
    let stride = 1 + classes.words.div_ceil(LINE_WORDS);
    let lines = 1 + intervals / 4 + classes.vectors.len() * stride + matchers.len().div_ceil(LINE_WORDS);
    let needed = (lines * size_of::<Line>()) as u64;
    if needed > allowed {
        return Err(CompileError::TooLarge { needed, allowed });
    }
    if intervals > tree::COUNT_MASK as usize {
        return Err(CompileError::TooManyIntervals(intervals));
    }
    Ok(write(matchers, &classes, (&narrow(&v4), &v6, &simple), intervals))
}

/// Where it begins, and its class.
type Interval = (u128, u64);

/// Where it begins, where that fits a word, and its class.
type Narrow = (u64, u64);

fn narrow(intervals: &[Interval]) -> Vec<Narrow> {
    intervals.iter().map(|(first, class)| (*first as u64, *class)).collect()
}

fn write(
    matchers: &[Matcher],
    classes: &Classes,
    (v4, v6, simple): (&[Narrow], &[Interval], &[Vec<Narrow>; 3]),
    intervals: usize,
) -> Compiled {
    let mut lines = vec![Line::default()];
    let mut words = [0; LINE_WORDS];
    words[header::SHAPE] = matchers.len() as u64 | (classes.words.div_ceil(64) as u64) << 32;
    words[header::ADDRESSES4] = plant(&mut lines, v4);
    words[header::ADDRESSES6] = plant_halves(&mut lines, v6);
    words[header::SERVICES] = plant(&mut lines, &simple[0]);
    words[header::ORIGINS] = plant(&mut lines, &simple[1]);
    words[header::WAYS] = plant(&mut lines, &simple[2]);
    let stride = 1 + classes.words.div_ceil(LINE_WORDS);
    words[header::VECTORS] = lines.len() as u64 | (stride as u64) << 32;
    for vector in &classes.vectors {
        let mut summary = Line::default();
        for (at, word) in vector.iter().enumerate() {
            summary.words[at / 64] |= u64::from(*word != 0) << (at % 64);
        }
        lines.push(summary);
        push_words(&mut lines, vector);
    }
    words[header::RULES] = lines.len() as u64;
    push_words(&mut lines, &matchers.iter().map(|matcher| matcher.word).collect::<Vec<_>>());
    lines[0] = Line { words };
    Compiled { lines, classes: classes.vectors.len(), intervals }
}

fn push_words(lines: &mut Vec<Line>, words: &[u64]) {
    for chunk in words.chunks(LINE_WORDS) {
        let mut line = Line::default();
        line.words[..chunk.len()].copy_from_slice(chunk);
        lines.push(line);
    }
}

/// Adds a tree of these intervals, the first of which begins at 0; returns its word.
fn plant(lines: &mut Vec<Line>, intervals: &[(u64, u64)]) -> u64 {
    let (first, count) = (lines.len() as u32, intervals.len());
    let mut depth = 1;
    while LINE_WORDS.pow(depth) < count {
        depth += 1;
    }
    for level in 1..=depth {
        // One key of this level is above so many intervals.
        let below = LINE_WORDS.pow(depth - level);
        let keys: Vec<u64> = intervals.iter().step_by(below).map(|(key, _)| *key).collect();
        for chunk in keys.chunks(LINE_WORDS) {
            let mut line = Line { words: [u64::MAX; LINE_WORDS] };
            line.words[..chunk.len()].copy_from_slice(chunk);
            lines.push(line);
        }
    }
    push_words(lines, &intervals.iter().map(|(_, class)| *class).collect::<Vec<_>>());
    tree::pack(first, count as u32, depth)
}

/// Adds a tree of upper halves, and one of lower halves wherever they make a difference.
fn plant_halves(lines: &mut Vec<Line>, intervals: &[Interval]) -> u64 {
    let mut uppers: Vec<(u64, u64)> = Vec::new();
    let mut push = |upper: u64, class: u64| {
        if uppers.last().is_none_or(|(_, last)| *last != class || class & tree::IS_TREE != 0) {
            uppers.push((upper, class));
        }
    };
    // What holds until the next interval, and from which upper half on that is still to be said.
    let mut carried = (0, 0);
    for group in intervals.chunk_by(|one, other| one.0 >> 64 == other.0 >> 64) {
        let upper = (group[0].0 >> 64) as u64;
        if carried.0 < upper {
            push(carried.0, carried.1);
        }
        let mut lowers: Vec<(u64, u64)> = group.iter().map(|(first, class)| (*first as u64, *class)).collect();
        if lowers[0].0 != 0 {
            lowers.insert(0, (0, carried.1));
        }
        match lowers.as_slice() {
            [(_, class)] => push(upper, *class),
            _ => push(upper, plant(lines, &lowers) | tree::IS_TREE),
        }
        carried = (upper.saturating_add(1), lowers[lowers.len() - 1].1);
        if upper == u64::MAX {
            return plant(lines, &uppers);
        }
    }
    push(carried.0, carried.1);
    plant(lines, &uppers)
}

/// Sets of rules, each known by a number.
struct Classes {
    /// 64-bit words of a set.
    words: usize,
    vectors: Vec<Vec<u64>>,
    known: HashMap<u128, u32>,
}

impl Classes {
    /// With the empty set, number 0.
    fn new(rules: usize) -> Self {
        let words = rules.div_ceil(64).max(1);
        Self { words, vectors: vec![vec![0; words]], known: HashMap::from([(0, 0)]) }
    }

    fn number(&mut self, set: &RuleSet) -> u32 {
        let vectors = &mut self.vectors;
        *self.known.entry(set.sum).or_insert_with(|| {
            vectors.push(set.bits.clone());
            vectors.len() as u32 - 1
        })
    }
}

/// A set of rules that changes rule by rule.
struct RuleSet {
    bits: Vec<u64>,
    sum: u128,
}

impl RuleSet {
    fn new(words: usize) -> Self {
        Self { bits: vec![0; words], sum: 0 }
    }

    fn toggle(&mut self, rules: &[u32]) {
        for rule in rules {
            self.bits[*rule as usize / 64] ^= 1 << (rule % 64);
            self.sum ^= random(*rule);
        }
    }
}

/// A number for a rule that looks like chance (splitmix64, twice).
fn random(rule: u32) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let rule = u64::from(rule);
    u128::from(mix(2 * rule + 1)) << 64 | u128::from(mix(2 * rule + 2))
}

/// Rules that share the very same ranges count as one here: a set of a million prefixes is swept once.
struct Events<'m> {
    groups: Vec<Vec<u32>>,
    known: HashMap<&'m Ranges, u32>,
    /// Where which group begins or ends.
    at: Vec<(u128, u32)>,
}

impl<'m> Events<'m> {
    fn of(matchers: &'m [Matcher], field: impl Fn(&'m Matcher) -> &'m Ranges) -> Self {
        let mut events = Self { groups: Vec::new(), known: HashMap::new(), at: Vec::new() };
        for (rule, matcher) in (0..).zip(matchers) {
            let ranges = field(matcher);
            let next = events.groups.len() as u32;
            let group = *events.known.entry(ranges).or_insert(next);
            if group == next {
                events.groups.push(Vec::new());
                for (first, last) in ranges.as_slice() {
                    events.at.push((*first, group));
                    events.at.extend(last.checked_add(1).map(|end| (end, group)));
                }
            }
            events.groups[group as usize].push(rule);
        }
        events.at.sort_unstable();
        events
    }
}

/// The intervals of one field; the first begins at 0.
fn sweep<'m>(
    classes: &mut Classes,
    matchers: &'m [Matcher],
    field: impl Fn(&'m Matcher) -> &'m Ranges,
) -> Vec<Interval> {
    let events = Events::of(matchers, field);
    let mut set = RuleSet::new(classes.words);
    let mut intervals = Vec::new();
    for here in events.at.chunk_by(|one, other| one.0 == other.0) {
        here.iter().for_each(|(_, group)| set.toggle(&events.groups[*group as usize]));
        push(&mut intervals, here[0].0, classes.number(&set).into());
    }
    from_zero(intervals)
}

/// The intervals of an address as source and as destination, at once: they share one tree.
fn sweep_pair(classes: &mut Classes, matchers: &[Matcher], family: fn(&Addresses) -> &Ranges) -> Vec<Interval> {
    let sources = Events::of(matchers, |matcher| family(&matcher.sources));
    let destinations = Events::of(matchers, |matcher| family(&matcher.destinations));
    let (mut as_source, mut as_destination) = (RuleSet::new(classes.words), RuleSet::new(classes.words));
    let (mut left, mut right) = (sources.at.iter().peekable(), destinations.at.iter().peekable());
    let mut intervals = Vec::new();
    while let Some(at) = [left.peek(), right.peek()].into_iter().flatten().map(|(at, _)| *at).min() {
        while let Some((_, group)) = left.next_if(|(here, _)| *here == at) {
            as_source.toggle(&sources.groups[*group as usize]);
        }
        while let Some((_, group)) = right.next_if(|(here, _)| *here == at) {
            as_destination.toggle(&destinations.groups[*group as usize]);
        }
        let pair = u64::from(classes.number(&as_source)) | u64::from(classes.number(&as_destination)) << 32;
        push(&mut intervals, at, pair);
    }
    from_zero(intervals)
}

fn push(intervals: &mut Vec<Interval>, at: u128, class: u64) {
    if intervals.last().is_none_or(|(_, last)| *last != class) {
        intervals.push((at, class));
    }
}

fn from_zero(mut intervals: Vec<Interval>) -> Vec<Interval> {
    if intervals.first().is_none_or(|(first, _)| *first != 0) {
        intervals.insert(0, (0, 0));
    }
    intervals
}
