//! What people write and read: amounts of bytes (`size`), times and durations (`time`), and tables (`table`).
//!
//! Everything that prints a number for a person, or reads one, uses this folder; JSON has plain numbers and does not. Text
//! that somebody else chose is made printable in `text`. Nothing here imports from another room.

mod size;
mod table;
mod time;

pub use size::{mebibytes, parse_bytes, percent, size};
pub use table::columns;
pub use time::{age, duration};
