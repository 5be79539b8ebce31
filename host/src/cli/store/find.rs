//! `lazyroot store find`.

use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use globset::{GlobBuilder, GlobMatcher};
use lazyroot_proto::ObjectId;

use super::file_record::{FileRecord, json_array};
use super::image_path::{ImagePath, image_path, path_text};
use crate::cli::output::{Format, output};
use crate::store::{Kind, Store, TreeEntry};

/// Arguments of `store find`; a file must meet all conditions.
#[derive(clap::Args)]
pub struct FindArgs {
    /// Image, and where in it to begin: IMAGE[:/PATH]
    #[arg(value_name = "IMAGE[:/PATH]", value_parser = image_path())]
    place: ImagePath,
    /// The file's name, with *, ?, [abc] and {a,b}
    #[arg(long, value_name = "PATTERN", value_parser = glob)]
    name: Option<GlobMatcher>,
    /// The whole path; * stops at no slash here
    #[arg(long, value_name = "PATTERN", value_parser = glob)]
    path: Option<GlobMatcher>,
    /// What it is
    #[arg(short, long = "type", value_name = "TYPE")]
    kind: Option<KindArg>,
    /// At least this many bytes
    #[arg(long, value_name = "BYTES")]
    min_size: Option<u64>,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// Its content is this object
    #[arg(long, value_name = "ID")]
    object: Option<ObjectId>,
    /// End paths with a NUL, and print them as they are (for xargs -0)
    #[arg(short = '0', long, conflicts_with = "format")]
    print0: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The letters of find(1).
#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    /// Regular file
    F,
    /// Folder
    D,
    /// Symbolic link
    L,
    /// Block device
    B,
    /// Character device
    C,
    /// Named pipe
    P,
    /// Socket
    S,
}

impl KindArg {
    fn kind(self) -> Kind {
        match self {
            KindArg::F => Kind::File,
            KindArg::D => Kind::Directory,
            KindArg::L => Kind::Symlink,
            KindArg::B => Kind::BlockDevice,
            KindArg::C => Kind::CharacterDevice,
            KindArg::P => Kind::Fifo,
            KindArg::S => Kind::Socket,
        }
    }
}

fn glob(text: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build()?.compile_matcher())
}

pub(super) fn find(args: &FindArgs, store: &Store) -> Result<ExitCode> {
    let (_, tree) = args.place.open(store)?;
    let start = args.place.entry(&tree)?;
    let matches = |entry: &TreeEntry| -> Result<bool> {
        let name = std::path::Path::new(std::ffi::OsStr::from_bytes(entry.name()));
        let fits = args.kind.is_none_or(|kind| kind.kind() == entry.kind())
            && args.min_size.is_none_or(|size| entry.size() >= size)
            && args.max_size.is_none_or(|size| entry.size() <= size)
            && args.name.as_ref().is_none_or(|glob| glob.is_match(name))
            && args.path.as_ref().is_none_or(|glob| glob.is_match(&entry.path));
        match args.object {
            Some(object) if fits => Ok(entry.is_file() && tree.object(entry)? == Some(object)),
            _ => Ok(fits),
        }
    };
    let found = tree.walk(&start.path)?.filter_map(|entry| {
        let kept = entry.and_then(|entry| Ok(matches(&entry)?.then_some(entry)));
        kept.transpose()
    });
    output(|out| {
        if args.format == Format::Json {
            return json_array(out, found.map(|entry| FileRecord::new(&tree, &entry?)));
        }
        for entry in found {
            let path = entry?.path;
            if args.print0 {
                out.write_all(path.as_os_str().as_bytes())?;
                out.write_all(b"\0")?;
            } else {
                writeln!(out, "{}", path_text(&path))?;
            }
        }
        Ok(())
    })
}
