//! `lazyroot store verify`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::image_path::path_text;
use crate::cli::output::{Format, output};
use crate::complain::complain;
use crate::human::size;
use crate::store::{Damage, Progress, Store};

/// Damaged files shown of one object in one image; JSON has them all.
const SHOWN_FILES: usize = 5;

/// Arguments of `store verify`.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Check this image only (default: every object of the store)
    image: Option<String>,
    /// Fetch damaged objects again from upstreams, and import the rest again from where their images came from
    #[arg(long)]
    repair: bool,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn verify(args: &VerifyArgs, store: &Store) -> Result<ExitCode> {
    let progress = Progress::stderr();
    let mut verification = store.verify(args.image.as_deref(), &progress)?;
    if args.repair && !verification.damaged.is_empty() {
        store.repair(&mut verification, &progress)?;
    }
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &verification).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        verification.damaged.iter().try_for_each(|damage| print(out, damage))?;
        writeln!(out, "{} objects, {}", verification.objects, size(verification.bytes))?;
        Ok(())
    })?;
    for why in &verification.not_repaired {
        complain(why);
    }
    let left = verification.damaged.iter().filter(|damage| !damage.repaired).count();
    if left > 0 {
        let hint = if args.repair { "" } else { "; 'lazyroot store verify --repair' fetches them again" };
        bail!("{left} objects are damaged{hint}");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut dyn Write, damage: &Damage) -> Result<()> {
    let repaired = if damage.repaired { "; repaired" } else { "" };
    writeln!(out, "{}: {}{repaired}", damage.object, damage.what)?;
    for (image, paths) in &damage.files {
        for path in paths.iter().take(SHOWN_FILES) {
            match path.as_os_str().is_empty() {
                true => writeln!(out, "  {image}: the manifest itself")?,
                false => writeln!(out, "  {image}:{}", path_text(path))?,
            }
        }
        if let Some(more @ 1..) = paths.len().checked_sub(SHOWN_FILES) {
            writeln!(out, "  {image}: {more} more files")?;
        }
    }
    Ok(())
}
