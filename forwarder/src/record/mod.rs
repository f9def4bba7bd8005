//! Flow log records as such: their fields, their formats, their content. Who makes them and where they go is `flowlog`'s; the
//! config knows formats from here.

mod content;
mod field;
mod filter;
mod format;
mod protocol;
mod value;

pub use content::{Batch, Direction, Interface, Interfaces, NOWHERE, Place, Record, Span, Tuple, Window};
pub use field::{Field, Kind, OWN};
pub use filter::{Filter, FilterError};
pub use format::{Format, FormatError};
pub use protocol::{protocol_name, protocol_named, protocol_names};
pub use value::{Line, Value, shown_destination, shown_source};
