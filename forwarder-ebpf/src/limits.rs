//! Limits for new flows, so that a flood takes room neither from what is established nor from everybody else.
//!
//! - Flows that nobody has answered yet have a share of the table, for each side that they enter by.
//! - A source (IPv4 address, IPv6 /64) may open so many flows a second, and have so many at once.
//!
//! Sources are counted in cells, two of them each, chosen by two hashes; who shares one cell with a flood does not share the
//! other. So the memory is fixed, and a flood from invented sources finds nothing to fill. What the datapath adds up here
//! the controller sets right with each pass over the flow table: it alone sees flows end.

use crate::abi::firewall::{SourceCell, source_cells, switch};
use crate::abi::{Control, FlowEntry, FlowKey, Ticks, status};
use crate::firewall::Ends;
use crate::route::Arrival;
use crate::tables::Tables;
use crate::verdict::Drop;

/// Why a flow that enters now may not begin, if there is a reason. Counts it for its source.
#[inline(always)]
pub(crate) fn refuse<K: Ends, T: Tables>(tables: &T, at: &Arrival<'_>, key: &K) -> Result<(), Drop> {
    let control = at.control;
    if control.firewall & switch::LIMITS == 0 {
        return Ok(());
    }
    let most = control.unanswered_most.get(K::FAMILY as usize & 1).copied().unwrap_or(0);
    if most != 0 && unanswered(tables, control, group::<K>(at.iface.side)) >= most {
        return Err(Drop::UnansweredLimit);
    }
    if control.source_new_per_second == 0 && control.source_flows == 0 {
        return Ok(());
    }
    let ([upper, lower], _) = key.addresses();
    // An IPv4 address is a lower half; of an IPv6 address the upper one is a network that one customer has.
    let [one, other] = source_cells(if upper == 0 { lower } else { upper });
    let (Some(first), Some(second)) = (tables.source_cell(one), tables.source_cell(other)) else { return Ok(()) };
    let (in_first, in_second) = (pass_second(first, at.now, control), pass_second(second, at.now, control));
    let rate = if in_first < in_second { in_first } else { in_second };
    if control.source_new_per_second != 0 && rate > control.source_new_per_second {
        return Err(Drop::SourceRate);
    }
    let (in_first, in_second) = (open(tables, first, one), open(tables, second, other));
    let flows = if in_first < in_second { in_first } else { in_second };
    if control.source_flows != 0 && flows >= control.source_flows {
        return Err(Drop::SourceFlows);
    }
    first.opened.add(1);
    second.opened.add(1);
    Ok(())
}

/// Flows of one family that enter by one side are counted together.
#[inline(always)]
fn group<K: FlowKey>(side: u8) -> u32 {
    (K::FAMILY as u32 & 1) << 2 | u32::from(side & 3)
}

/// Flows of a group that have not been answered, as far as is known.
#[inline(always)]
fn unanswered<T: Tables>(tables: &T, control: &Control, group: u32) -> u32 {
    let past = control.unanswered_past.get(group as usize & 7).copied().unwrap_or(0);
    match tables.unanswered(group) {
        // Below zero, when the controller was faster, is none.
        Some(count) => {
            at_least_none((count.opened.load() as u32).wrapping_sub(count.replied.load() as u32).wrapping_sub(past))
        }
        None => 0,
    }
}

#[inline(always)]
fn at_least_none(difference: u32) -> u32 {
    if difference > u32::MAX / 2 { 0 } else { difference }
}

/// Flows that a cell has now.
#[inline(always)]
fn open<T: Tables>(tables: &T, cell: &SourceCell, index: u32) -> u32 {
    at_least_none((cell.opened.load() as u32).wrapping_sub(tables.source_past(index)))
}

/// Counts one more flow in the cell's current second; how many there are in it.
#[inline(always)]
fn pass_second(cell: &SourceCell, now: Ticks, control: &Control) -> u32 {
    if now.wrapping_sub(cell.second.load()) >= control.ticks_per_second {
        cell.second.store(now);
        cell.in_second.store(0);
    }
    let count = cell.in_second.load() + 1;
    cell.in_second.store(count);
    count
}

/// A flow has begun.
#[inline(always)]
pub(crate) fn note_opened<K: FlowKey, T: Tables>(tables: &T, side: u8) {
    if let Some(count) = tables.unanswered(group::<K>(side)) {
        count.opened.add(1);
    }
}

/// `before` were its bits before a packet; if it was the first answer, the flow is out of the share. If it began a closing
/// connection anew, that waits for its first answer again.
#[inline(always)]
pub(crate) fn note_replied<K: FlowKey, T: Tables>(tables: &T, at: &Arrival<'_>, entry: &FlowEntry, before: u32) {
    let after = entry.status.load();
    if (before ^ after) & status::REPLIED == 0 {
        return;
    }
    let Some(count) = tables.unanswered(group::<K>(at.side_entered(entry))) else { return };
    if after & status::REPLIED != 0 {
        count.replied.add(1);
    } else {
        count.opened.add(1);
    }
}
