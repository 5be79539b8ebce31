//! `lazyroot store ls` and `tree`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use super::file_record::{FileRecord, json_array, mode_text, timestamp};
use super::image_path::{ImagePath, image_path, path_text};
use crate::cli::output::{Format, output};
use crate::store::{Listing, Store, Tree, TreeEntry};
use crate::text::printable_name;

/// Arguments of `store ls`.
#[derive(clap::Args)]
pub struct LsArgs {
    /// Image, and a path in it: IMAGE[:/PATH]
    #[arg(value_name = "IMAGE[:/PATH]", value_parser = image_path())]
    place: ImagePath,
    /// List folders below it too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Show a folder itself, not what is in it
    #[arg(short, long)]
    directory: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `store tree`.
#[derive(clap::Args)]
pub struct TreeArgs {
    /// Image, and a folder in it: IMAGE[:/PATH]
    #[arg(value_name = "IMAGE[:/PATH]", value_parser = image_path())]
    place: ImagePath,
    /// How many levels to show
    #[arg(short = 'L', long, value_name = "LEVELS", value_parser = clap::value_parser!(u32).range(1..))]
    level: Option<u32>,
}

pub(super) fn ls(args: &LsArgs, store: &Store) -> Result<ExitCode> {
    let (_, tree) = args.place.open(store)?;
    let entry = args.place.entry(&tree)?;
    // Each folder with its files; the names of one file are its path.
    let single = args.directory || !entry.is_dir();
    let levels = if args.recursive { None } else { Some(1) };
    let listing = if single { None } else { Some(tree.listing(&entry.path, levels)?) };
    let folders = match &listing {
        Some(listing) if args.recursive => &listing.folders[..],
        Some(listing) => &listing.folders[..1],
        None => &[],
    };
    output(|out| match args.format {
        Format::Table => {
            if single {
                return table(out, &tree, &[(path_text(&entry.path), entry)]);
            }
            for (number, folder) in folders.iter().enumerate() {
                if args.recursive {
                    let gap = if number == 0 { "" } else { "\n" };
                    writeln!(out, "{gap}{}:", path_text(&folder.path))?;
                }
                let names = folder.names.iter();
                let rows = names.map(|name| Ok((printable_name(&name.name), tree.listed(folder, name)?)));
                table(out, &tree, &rows.collect::<Result<Vec<_>>>()?)?;
            }
            Ok(())
        }
        Format::Json => {
            let files = folders.iter().flat_map(|folder| folder.names.iter().map(|name| tree.listed(folder, name)));
            json_array(
                out,
                single.then_some(Ok(entry)).into_iter().chain(files).map(|entry| FileRecord::new(&tree, &entry?)),
            )
        }
    })
}

/// Lines of `ls -l`, columns as wide as their widest.
fn table(out: &mut dyn Write, tree: &Tree, rows: &[(String, TreeEntry)]) -> Result<()> {
    let size = |entry: &TreeEntry| match entry.device() {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.size().to_string(),
    };
    let width =
        |text: &dyn Fn(&TreeEntry) -> String| rows.iter().map(|(_, entry)| text(entry).len()).max().unwrap_or(0);
    let links = width(&|entry| entry.links().to_string());
    let uid = width(&|entry| entry.uid().to_string());
    let gid = width(&|entry| entry.gid().to_string());
    let sizes = width(&size);
    for (name, entry) in rows {
        let mode = mode_text(entry);
        let time = timestamp(entry).map_or_else(|| "?".into(), |time| time.format("%Y-%m-%d %H:%M").to_string());
        write!(
            out,
            "{mode} {:>links$} {:>uid$} {:>gid$} {:>sizes$} {time:16} {name}",
            entry.links(),
            entry.uid(),
            entry.gid(),
            size(entry)
        )?;
        if let Some(target) = tree.target(entry)? {
            write!(out, " -> {}", path_text(&target))?;
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

pub(super) fn tree(args: &TreeArgs, store: &Store) -> Result<ExitCode> {
    let (_, tree) = args.place.open(store)?;
    let entry = args.place.entry(&tree)?;
    let listing = tree.listing(&entry.path, args.level.map(|level| level as usize))?;
    output(|out| {
        writeln!(out, "{}", path_text(&entry.path))?;
        draw(out, &tree, &listing)
    })
}

/// Draws the tree without recursion: it may be deep.
fn draw(out: &mut dyn Write, tree: &Tree, listing: &Listing) -> Result<()> {
    // Folders on the way down: which, and how many of their names were drawn.
    let mut open = vec![(0, 0)];
    let mut indent = String::new();
    while let Some((folder, drawn)) = open.last_mut() {
        let names = &listing.folders[*folder].names;
        let Some(name) = names.get(*drawn) else {
            open.pop();
            // Three characters and a space each, of which all but the space take three bytes or one.
            if let Some((cut, _)) = indent.char_indices().rev().nth(3) {
                indent.truncate(cut);
            }
            continue;
        };
        *drawn += 1;
        let last = *drawn == names.len();
        let entry = tree.listed(&listing.folders[*folder], name)?;
        write!(out, "{indent}{}{}", if last { "└── " } else { "├── " }, printable_name(&name.name))?;
        match tree.target(&entry)? {
            Some(target) => writeln!(out, " -> {}", path_text(&target))?,
            None => writeln!(out)?,
        }
        if let Some(below) = name.folder {
            open.push((below as usize, 0));
            indent.push_str(if last { "    " } else { "│   " });
        }
    }
    Ok(())
}
