//! Flow log records as such: their fields, their formats, their content. Who makes them and where they go is `flowlog`'s; the
//! config knows formats from here.

mod content;
mod field;
mod format;

pub use content::{Batch, Direction, Interface, Interfaces, NOWHERE, Place, Record, Span, Tuple, Window};
pub use field::{Field, Kind, OWN};
pub use format::{Format, FormatError, shown_destination, shown_source};
