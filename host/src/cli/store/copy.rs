//! `lazyroot store cat` and `cp`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::image_path::{ImagePath, image_path, path_text};
use crate::cli::output::output;
use crate::complain::complain;
use crate::store::{Store, Tree, TreeEntry, copy_out};

/// Arguments of `store cat`.
#[derive(clap::Args)]
pub struct CatArgs {
    /// Image, and a file in it: IMAGE:/PATH
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path(), required = true)]
    places: Vec<ImagePath>,
}

/// Arguments of `store cp`.
#[derive(clap::Args)]
pub struct CpArgs {
    /// Image, and what to copy: IMAGE:/PATH
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    place: ImagePath,
    /// Where to: a folder that is there, or a name that is not
    #[arg(value_name = "DEST")]
    dest: PathBuf,
}

pub(super) fn cat(args: &CatArgs, store: &Store) -> Result<ExitCode> {
    let source = store.source();
    output(|out| {
        // Several files of one image: its manifest is read once.
        let mut opened: Option<(&str, Tree)> = None;
        for place in &args.places {
            let tree = match &mut opened {
                Some((image, tree)) if *image == place.image => tree,
                opened => &opened.insert((&place.image, place.open(store)?.1)).1,
            };
            let entry = followed(place, tree)?;
            tree.copy_file(source.as_ref(), &entry, out)
                .with_context(|| format!("cannot read {}:{}", place.image, path_text(&place.path)))?;
        }
        Ok(())
    })
}

/// The file that a place leads to, a symbolic link at its end followed.
fn followed(place: &ImagePath, tree: &Tree) -> Result<TreeEntry> {
    let mut slashed = place.path.clone().into_os_string();
    slashed.push("/");
    match tree.entry(PathBuf::from(slashed))? {
        Some(entry) if entry.is_file() => Ok(entry),
        Some(_) => bail!("{} is no regular file in image {}", path_text(&place.path), place.image),
        None => bail!("image {} has no file {}", place.image, path_text(&place.path)),
    }
}

pub(super) fn cp(args: &CpArgs, store: &Store) -> Result<ExitCode> {
    let (_, tree) = args.place.open(store)?;
    let entry = args.place.entry(&tree)?;
    let dest = match args.dest.is_dir() {
        false => args.dest.clone(),
        true => match entry.path.file_name() {
            Some(name) => args.dest.join(name),
            None => bail!("{} is there already: give a name for the image's root", args.dest.display()),
        },
    };
    let left_out = copy_out(&tree, store.source().as_ref(), &entry, &dest)?;
    if left_out.nodes > 0 || left_out.attributes > 0 {
        complain(format_args!(
            "left out {} device nodes and {} extended attributes: they need root",
            left_out.nodes, left_out.attributes
        ));
    }
    Ok(ExitCode::SUCCESS)
}
