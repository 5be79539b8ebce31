//! Words to the user. The host has the same few lines: `proto`, which both share, does no I/O, and on macOS the host does
//! without this crate.

use std::fmt::Display;
use std::io::Write;

/// A line on standard error, in the program's name. Unlike with `eprintln!`, that nobody may hear it (a closed pipe, a
/// console that is gone) is nothing to die of.
pub fn complain(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "lazyroot: {what}");
}
