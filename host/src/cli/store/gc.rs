//! `lazyroot store gc`.

use std::process::ExitCode;

use anyhow::Result;

use super::image_path::path_text;
use crate::cli::context::Context;
use crate::cli::output::{Format, output};
use crate::human::size;
use crate::store::{Collect, Store};
use crate::text::printable;
use crate::vm::kernel::bundle::Kernels;

/// Arguments of `store gc`.
#[derive(clap::Args)]
pub struct GcArgs {
    /// Remove nothing, and say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// How to print what was removed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn gc(args: &GcArgs, store: &Store, context: &Context) -> Result<ExitCode> {
    let collected = store.collect(if args.dry_run { Collect::DryRun } else { Collect::Really })?;
    if !args.dry_run {
        // Of this home, whichever store it is about: looking again costs one launch some milliseconds.
        Kernels::open(&context.home)?.forget_images(|image| store.find_id(image).is_ok())?;
    }
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &collected).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        for image in &collected.images {
            writeln!(out, "{} image {image}", if args.dry_run { "would remove" } else { "removed" })?;
        }
        for (image, users) in &collected.in_use {
            writeln!(out, "kept image {image}: in use by {}", printable(&users.join(", ")))?;
        }
        for path in &collected.foreign {
            writeln!(out, "left alone {}: it is no object", path_text(path))?;
        }
        writeln!(
            out,
            "{} images, {} objects and {} other files; {} {}",
            collected.images.len(),
            collected.objects,
            collected.files,
            size(collected.freed_bytes),
            if args.dry_run { "would be freed" } else { "freed" },
        )?;
        Ok(())
    })
}
