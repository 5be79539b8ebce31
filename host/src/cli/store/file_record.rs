//! A file of an image as lists print it, for people and as JSON.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::image_path::path_text;
use crate::store::{Tree, TreeEntry};
use crate::text::printable_name;

/// One file as JSON has it.
#[derive(Serialize)]
pub struct FileRecord {
    /// Printable.
    pub path: String,
    /// All bytes in hex where the path is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// `file`, `directory`, ...
    pub kind: &'static str,
    /// Octal.
    pub mode: String,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Names that the file has.
    pub links: u32,
    /// In bytes.
    pub size: u64,
    /// As RFC 3339 writes it; empty for a time that no calendar has.
    pub modified: String,
    /// Where a symbolic link leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `MAJOR:MINOR` of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The object with the content of a regular file that is not inline.
    pub object: Option<String>,
}

impl FileRecord {
    /// The record of a file of `tree`.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn new(tree: &Tree, entry: &TreeEntry) -> Result<Self> {
        let path = entry.path.as_os_str();
        Ok(Self {
            path: path.to_str().map_or_else(|| printable_name(path.as_bytes()), str::to_owned),
            path_hex: path.to_str().is_none().then(|| path.as_bytes().iter().map(|b| format!("{b:02x}")).collect()),
            kind: entry.kind().name(),
            mode: format!("{:04o}", entry.mode()),
            uid: entry.uid(),
            gid: entry.gid(),
            links: entry.links(),
            size: entry.size(),
            modified: timestamp(entry).map_or_else(String::new, |time| time.to_rfc3339()),
            target: tree.target(entry)?.map(|target| path_text(&target)),
            device: entry.device().map(|(major, minor)| format!("{major}:{minor}")),
            object: if entry.is_file() { tree.object(entry)?.map(|id| id.to_string()) } else { None },
        })
    }
}

/// Prints an array, one element a line, none of them in memory for long.
///
/// # Errors
/// If an element is one, or `out` cannot be written.
pub fn json_array<T: Serialize>(out: &mut dyn Write, elements: impl Iterator<Item = Result<T>>) -> Result<()> {
    let mut before = "[\n";
    for element in elements {
        out.write_all(before.as_bytes())?;
        serde_json::to_writer(&mut *out, &element?).map_err(std::io::Error::from)?;
        before = ",\n";
    }
    out.write_all(if before == "[\n" { b"[]\n" } else { b"\n]\n" })?;
    Ok(())
}

/// When a file changed; `None` for a time that no calendar has.
pub fn timestamp(entry: &TreeEntry) -> Option<DateTime<Utc>> {
    let (seconds, nanoseconds) = entry.modified();
    DateTime::from_timestamp(seconds, nanoseconds)
}

/// `rwxr-xr-x` with a kind before it, as ls(1) writes modes.
pub fn mode_text(entry: &TreeEntry) -> String {
    let mode = entry.mode();
    let mut text = String::with_capacity(10);
    text.push(entry.kind().letter());
    for (shift, special, letters) in [(6, 0o4000, ('s', 'S')), (3, 0o2000, ('s', 'S')), (0, 0o1000, ('t', 'T'))] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letters.0,
            (true, false) => letters.1,
        });
    }
    text
}
