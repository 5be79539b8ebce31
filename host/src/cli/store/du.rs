//! `lazyroot store du`.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::{Format, Place, output, place, shown};
use crate::human::size;
use crate::store::{Store, Usage};

/// Arguments of `store du`.
#[derive(clap::Args)]
pub struct DuArgs {
    /// Image, and a path in it: IMAGE[:/PATH]
    #[arg(value_name = "IMAGE[:/PATH]", value_parser = place())]
    place: Place,
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
            let rows = usage.into_iter().map(|(path, usage)| Ok(Row { path: shown(&path), usage }));
            super::json_array(out, rows)
        }
        Format::Table => {
            writeln!(out, "{:>12}  {:>12}  {:>12}  PATH", "APPARENT", "UNIQUE", "SHARED")?;
            for (path, usage) in usage {
                let [apparent, unique, shared] =
                    [usage.apparent_bytes, usage.unique_bytes, usage.shared_bytes].map(size);
                writeln!(out, "{apparent:>12}  {unique:>12}  {shared:>12}  {}", shown(&path))?;
            }
            Ok(())
        }
    })
}
