//! `lazyroot store`: looking inside images without mounting them and without root, and keeping the store in order.

mod copy;
mod du;
mod find;
mod gc;
mod list;
mod push;
mod stat;
mod stats;
mod verify;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use clap::builder::{OsStringValueParser, TypedValueParser};
use lazyroot_proto::ObjectId;
use serde::Serialize;

use super::source::SourceArgs;
use super::{Context, Format, output};
use crate::store::{Store, Tree, TreeEntry};
use crate::text::printable_name;

/// What to do with the store.
#[derive(clap::Subcommand)]
pub enum StoreCommand {
    /// List files of an image, as ls -l does
    Ls(Sourced<list::LsArgs>),
    /// Write files of an image to standard output
    Cat(Sourced<copy::CatArgs>),
    /// Show all that is known of files of an image, and which images share their content
    Stat(Sourced<stat::StatArgs>),
    /// Show a folder of an image as a tree
    Tree(Sourced<list::TreeArgs>),
    /// Find files of an image
    Find(Box<Sourced<find::FindArgs>>),
    /// How much an image's folders take, and how much of it other images have too
    Du(Sourced<du::DuArgs>),
    /// Copy files out of an image
    Cp(Sourced<copy::CpArgs>),
    Push(push::PushArgs),
    /// Read every object and check it against its digest
    Verify(Sourced<verify::VerifyArgs>),
    /// Add up what is in the store
    Stats(stats::StatsArgs),
    /// Remove what no named or used image needs
    Gc(gc::GcArgs),
}

/// A command's arguments, and where images come from that the store does not have.
#[derive(clap::Args)]
pub struct Sourced<T: clap::Args> {
    #[command(flatten)]
    args: T,
    #[command(flatten)]
    source: SourceArgs,
}

impl<T: clap::Args> Sourced<T> {
    fn run(&self, context: &Context, command: fn(&T, &Store) -> Result<ExitCode>) -> Result<ExitCode> {
        command(&self.args, &self.source.open(context)?)
    }
}

/// Runs `lazyroot store`.
///
/// # Errors
/// If the store cannot be opened or the command fails.
pub fn run(command: StoreCommand, context: &Context) -> Result<ExitCode> {
    let store = || Store::open(&context.home, context.store.as_deref());
    match command {
        StoreCommand::Ls(args) => args.run(context, list::ls),
        StoreCommand::Cat(args) => args.run(context, copy::cat),
        StoreCommand::Stat(args) => args.run(context, stat::stat),
        StoreCommand::Tree(args) => args.run(context, list::tree),
        StoreCommand::Find(args) => args.run(context, find::find),
        StoreCommand::Du(args) => args.run(context, du::du),
        StoreCommand::Cp(args) => args.run(context, copy::cp),
        StoreCommand::Push(args) => push::run(&args, context),
        StoreCommand::Verify(args) => args.run(context, verify::verify),
        StoreCommand::Stats(args) => stats::stats(&args, &store()?, context),
        StoreCommand::Gc(args) => gc::gc(&args, &store()?, context),
    }
}

/// `IMAGE[:/PATH]`: an image and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    image: String,
    path: PathBuf,
}

impl Place {
    /// The first `:/` ends the image: no name and no digest has one.
    fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let end = bytes.windows(2).position(|pair| pair == b":/").unwrap_or(bytes.len());
        let image = std::str::from_utf8(&bytes[..end]).map_err(|_| "the image's name is no text".to_owned())?;
        let path = match bytes.get(end + 1..) {
            Some(path) => path.to_vec(),
            None => b"/".to_vec(),
        };
        Ok(Self { image: image.to_owned(), path: OsString::from_vec(path).into() })
    }

    fn open(&self, store: &Store) -> Result<(ObjectId, Tree)> {
        store.look_into(&self.image)
    }

    /// What is there.
    fn entry(&self, tree: &Tree) -> Result<TreeEntry> {
        let entry = tree.entry(&self.path)?;
        entry.with_context(|| format!("image {} has no {}", self.image, shown(&self.path)))
    }
}

/// For clap, which reads arguments of any bytes with this.
fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(|text| Place::parse(&text))
}

/// A path as a line of text.
fn shown(path: &Path) -> String {
    printable_name(path.as_os_str().as_bytes())
}

/// One file as JSON has it.
#[derive(Serialize)]
struct FileRecord {
    path: String,
    /// All bytes in hex where the path is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: &'static str,
    /// Octal.
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    object: Option<String>,
}

impl FileRecord {
    fn new(tree: &Tree, entry: &TreeEntry) -> Result<Self> {
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
            target: tree.target(entry)?.map(|target| shown(&target)),
            device: entry.device().map(|(major, minor)| format!("{major}:{minor}")),
            object: if entry.is_file() { tree.object(entry)?.map(|id| id.to_string()) } else { None },
        })
    }
}

/// Prints an array, one element a line, none of them in memory for long.
fn json_array<T: Serialize>(out: &mut dyn Write, elements: impl Iterator<Item = Result<T>>) -> Result<()> {
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
fn timestamp(entry: &TreeEntry) -> Option<DateTime<Utc>> {
    let (seconds, nanoseconds) = entry.modified();
    DateTime::from_timestamp(seconds, nanoseconds)
}

/// `rwxr-xr-x` with a kind before it, as ls(1) writes modes.
fn mode_text(entry: &TreeEntry) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_an_image_and_a_path() {
        let parse = |text: &str| Place::parse(OsStr::new(text)).unwrap();
        let place = |image: &str, path: &str| Place { image: image.into(), path: path.into() };
        assert_eq!(parse("debian"), place("debian", "/"));
        assert_eq!(parse("debian:trixie"), place("debian:trixie", "/"));
        assert_eq!(parse("debian:/etc"), place("debian", "/etc"));
        assert_eq!(parse("localhost:5000/a/b:v1:/etc/x:/y"), place("localhost:5000/a/b:v1", "/etc/x:/y"));
        assert_eq!(parse("sha256:00:/"), place("sha256:00", "/"));
        let odd = Place::parse(OsStr::from_bytes(b"a:/\xff")).unwrap();
        assert_eq!(odd.path.as_os_str().as_bytes(), b"/\xff");
    }
}
