//! Printing to standard output, and the formats of lists.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

/// What is printed goes to stdout in pieces of this many bytes.
const OUTPUT_BUFFER: usize = 64 << 10;

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// One JSON document for programs
    Json,
}

/// Prints to stdout. If the reader of a pipe went away, that is no error.
///
/// # Errors
/// If stdout cannot be written.
pub fn print(text: &str) -> Result<ExitCode> {
    output(|out| Ok(out.write_all(text.as_bytes())?))
}

/// Lets `write` print to stdout. If the reader of a pipe went away, that is no error.
///
/// # Errors
/// If `write` fails, or stdout cannot be written.
pub fn output(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<ExitCode> {
    let mut out = std::io::BufWriter::with_capacity(OUTPUT_BUFFER, std::io::stdout().lock());
    let written = write(&mut out).and_then(|()| Ok(out.flush()?));
    // What could not be written would be tried once more when it is dropped.
    let _ = out.into_parts();
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    match written {
        Err(error) if error.chain().any(is_broken_pipe) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}
