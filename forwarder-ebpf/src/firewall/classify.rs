//! From five numbers to the first rule that matches: interval trees, then bit vectors. See `abi::firewall` for the layout.
//!
//! Nothing here branches on what it compares: the verifier would follow both ways of each of the eight comparisons of a
//! node, on each level.

use crate::abi::firewall::{LINE_WORDS, Line, MAX_DEPTH, SUMMARIES, header, tree};
use crate::tables::Lines;

/// The rule that a packet meets when none matches.
pub(crate) const NO_RULE: u32 = u32::MAX;

/// Which field of five each class is of; the order in `first_match`.
pub(crate) const FIELDS: usize = 5;

/// Keys of `node` that are not above `key`, 0 to 8.
#[inline(always)]
fn not_above(node: &Line, key: u64) -> u32 {
    let mut above = 0;
    for first in node.words {
        // The borrow of `key - first`, that is `key < first`, as a bit.
        above += ((!key & first) | ((!key | first) & key.wrapping_sub(first))) >> 63;
    }
    LINE_WORDS as u32 - above as u32
}

/// The class of the interval of `tree` that has `key`; 0 when the policy is damaged.
#[inline(always)]
pub(crate) fn class_of<L: Lines>(lines: &L, tree: u64, key: u64) -> u64 {
    let count = (tree >> tree::COUNT_SHIFT) as u32 & tree::COUNT_MASK;
    let depth = (tree >> tree::DEPTH_SHIFT) as u32 & tree::DEPTH_MASK;
    let (mut first, mut at, mut nodes) = (tree as u32, 0u32, 1u32);
    let mut level = 0;
    while level < MAX_DEPTH {
        if level >= depth {
            break;
        }
        let Some(node) = lines.line(first.wrapping_add(at)) else { return 0 };
        at = (at * LINE_WORDS as u32).wrapping_add(not_above(node, key)).wrapping_sub(1);
        first = first.wrapping_add(nodes);
        let shift = 3 * (depth - 1 - level);
        nodes = (count + (1 << (shift & 31)) - 1) >> (shift & 31);
        // What fills up the last node is not below any key but the very last, which then belongs to the last interval.
        if at >= nodes {
            at = nodes.wrapping_sub(1);
        }
        level += 1;
    }
    let Some(values) = lines.line(first.wrapping_add(at / LINE_WORDS as u32)) else { return 0 };
    word(values, at)
}

/// Word `at` of a line, modulo its length.
#[inline(always)]
fn word(line: &Line, at: u32) -> u64 {
    match line.words.get(at as usize % LINE_WORDS) {
        Some(word) => *word,
        None => 0,
    }
}

/// The lines at these numbers, word `at` of each, ANDed.
#[inline(always)]
fn met_by_all<L: Lines>(lines: &L, starts: &[u32; FIELDS], line: u32, at: u32) -> u64 {
    let mut all = u64::MAX;
    for start in starts {
        all &= match lines.line(start.wrapping_add(line)) {
            Some(line) => word(line, at),
            None => 0,
        };
    }
    all
}

/// The first rule whose bit is set in the vectors of all these classes.
#[inline(always)]
pub(crate) fn first_match<L: Lines>(lines: &L, header: &Line, classes: [u32; FIELDS]) -> u32 {
    let [shape, .., vectors, _] = header.words;
    let groups = (shape >> 32) as u32;
    let stride = (vectors >> 32) as u32;
    let starts = classes.map(|class| (vectors as u32).wrapping_add(class.wrapping_mul(stride)));
    let mut group = 0;
    while group < SUMMARIES {
        if group >= groups {
            break;
        }
        let mut left = met_by_all(lines, &starts, 0, group);
        let mut turn = 0;
        while turn < 64 {
            if left == 0 {
                break;
            }
            let block = group * 64 + left.trailing_zeros();
            left &= left - 1;
            let rules = met_by_all(lines, &starts, 1 + block / LINE_WORDS as u32, block);
            if rules != 0 {
                return block * 64 + rules.trailing_zeros();
            }
            turn += 1;
        }
        group += 1;
    }
    NO_RULE
}

/// The word of rule number `rule`.
#[inline(always)]
pub(crate) fn rule_word<L: Lines>(lines: &L, header: &Line, rule: u32) -> u64 {
    let first = header.words.get(header::RULES).copied().unwrap_or(0) as u32;
    match lines.line(first.wrapping_add(rule / LINE_WORDS as u32)) {
        Some(line) => word(line, rule),
        None => 0,
    }
}
