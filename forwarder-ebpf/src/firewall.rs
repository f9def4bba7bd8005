//! Who may begin a flow: the default of the side that its first packet enters by. Later packets never ask, unless the
//! policy's epoch moved.

use crate::abi::{Control, Side};

/// May a flow begin that enters by `side`? `from_inside` says where the packet itself belongs, for an interface that
/// serves both sides.
#[inline(always)]
pub(crate) fn admits(control: &Control, side: u8, from_inside: bool) -> bool {
    let inside = side == Side::Inside as u8 || (side == Side::Both as u8 && from_inside);
    let allowed = if inside { control.inside_allowed } else { control.outside_allowed };
    allowed != 0
}
