//! `lazyroot store du`.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::file_record::json_array;
use super::image_path::{ImagePath, image_path, path_text};
use crate::cli::output::{Format, output};
use crate::human::size;
use crate::store::{Store, Usage};

/// Arguments of `store du`.
#[derive(clap::Args)]
pub struct DuArgs {
    /// Image, and a path in it: IMAGE[:/PATH]
    #[arg(value_name = "IMAGE[:/PATH]", value_parser = image_path())]
    place: ImagePath,
    /// How many levels of folders to show; 0 for the sum alone
    #[arg(short, long, default_value_t = 1)]
    depth: usize,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    path: String,
    #[serde(flatten)]
    usage: Usage,
}

pub(super) fn du(args: &DuArgs, store: &Store) -> Result<ExitCode> {
    let (id, tree) = args.place.open(store)?;
    let start = args.place.entry(&tree)?;
    let usage = store.usage(&id, &tree, &start.path, args.depth)?;
    output(|out| match args.format {
        Format::Json => {
            let rows = usage.into_iter().map(|(path, usage)| Ok(Row { path: path_text(&path), usage }));
            json_array(out, rows)
        }
        Format::Table => {
            writeln!(out, "{:>12}  {:>12}  {:>12}  PATH", "APPARENT", "UNIQUE", "SHARED")?;
            for (path, usage) in usage {
                let [apparent, unique, shared] =
                    [usage.apparent_bytes, usage.unique_bytes, usage.shared_bytes].map(size);
                writeln!(out, "{apparent:>12}  {unique:>12}  {shared:>12}  {}", path_text(&path))?;
            }
            Ok(())
        }
    })
}
