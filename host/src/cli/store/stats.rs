//! `lazyroot store stats`.

use std::process::ExitCode;

use anyhow::Result;
use indicatif::HumanBytes;

use super::{Format, output};
use crate::store::Store;

/// Arguments of `store stats`.
#[derive(clap::Args)]
pub struct StatsArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn stats(args: &StatsArgs, store: &Store) -> Result<ExitCode> {
    let stats = store.stats()?;
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &stats).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        let mut line = |what: &str, value: String| writeln!(out, "{what:<22}{value}");
        line("images", format!("{} with {} names", stats.images, stats.names))?;
        line("objects", format!("{}, {}", stats.objects, HumanBytes(stats.object_bytes)))?;
        line("on the disk", HumanBytes(stats.disk_bytes).to_string())?;
        line("in all images", HumanBytes(stats.image_bytes).to_string())?;
        line("each object once", HumanBytes(stats.distinct_bytes).to_string())?;
        line("deduplication", format!("{:.2}", stats.dedup_ratio))?;
        line("objects shared", stats.shared_objects.to_string())?;
        line("in no image", HumanBytes(stats.unreferenced_bytes).to_string())?;
        for pin in &stats.in_use {
            let image = pin.image.get(..12).unwrap_or_default();
            line("in use", format!("image {image} by {}", pin.shown()))?;
        }
        Ok(())
    })
}
