//! `lazyroot profile`: what boots of an image are known to read, and are sent ahead.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::observe::trace;
use crate::cli::output::{Format, print};
use crate::cli::vm::run::{self, RunArgs};
use crate::human::{columns, duration, size};
use crate::store::{BOOT, Profile, Store};

/// What boots of an image are known to read, and are sent ahead
#[derive(clap::Subcommand)]
pub enum ProfileCommand {
    /// List the images that have a profile
    Ls {
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what an image's profile has, in the order of first reading
    Show {
        /// Name or digest
        image: String,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Boot an image with nothing sent ahead, and make its profile anew from what this boot reads
    ///
    /// With a command the VM ends with it; without one, when the image's init has run for the time that a profile
    /// covers, or powers off.
    Record {
        /// End the VM after this many seconds [default: with a command never, else 60]
        #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
        #[command(flatten)]
        run: Box<RunArgs>,
    },
    /// Remove profiles: the next boot begins a new one
    Rm {
        /// Names or digests of the images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

/// Runs `lazyroot profile`.
pub fn run(command: ProfileCommand, context: &Context, launched: Instant) -> Result<ExitCode> {
    let store = || Store::open(&context.home, context.store.as_deref());
    match command {
        ProfileCommand::Ls { format } => list(&store()?, format),
        ProfileCommand::Show { image, format } => show(&store()?, &image, format),
        ProfileCommand::Record { seconds, run } => {
            run::record(*run, seconds.map(Duration::from_secs), context, launched)
        }
        ProfileCommand::Rm { images } => {
            let store = store()?;
            for name in images {
                let profile = store.profile(&store.resolve(&name)?.id);
                if profile.read().is_none() {
                    bail!("{name} has no profile");
                }
                profile.remove()?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(store: &Store, format: Format) -> Result<ExitCode> {
    let mut profiles = Vec::new();
    for image in store.images()? {
        let Some(profile) = store.profile(&image.id).read() else { continue };
        let index = store.resolve(&image.id.to_string())?.index.load()?;
        profiles.push((image, profile.runs, profile.hints(&index).len(), profile.bytes(&index)));
    }
    if format == Format::Json {
        let list: Vec<_> = profiles
            .iter()
            .map(|(image, runs, extents, bytes)| {
                json!({
                    "image": image.id.to_string(),
                    "names": image.names,
                    "runs": runs,
                    "extents": extents,
                    "bytes": bytes,
                    "image_bytes": image.object_bytes,
                })
            })
            .collect();
        return print(&(serde_json::to_string_pretty(&list)? + "\n"));
    }
    let mut rows = vec![["IMAGE", "ID", "RUNS", "EXTENTS", "SIZE", "OF"].map(str::to_owned)];
    for (image, runs, extents, bytes) in &profiles {
        rows.push([
            image.names.first().cloned().unwrap_or("<none>".into()),
            image.id.to_hex()[..12].to_owned(),
            runs.to_string(),
            extents.to_string(),
            size(*bytes),
            size(image.object_bytes),
        ]);
    }
    print(&columns(&rows))
}

/// One file of a profile.
struct File {
    name: String,
    bytes: u64,
    /// In microseconds after the first read.
    at: u64,
    /// Runs since any of it was read.
    missed: u8,
}

fn show(store: &Store, name: &str, format: Format) -> Result<ExitCode> {
    let image = store.resolve(name)?;
    let profile = store.profile(&image.id).read();
    let profile: Profile =
        profile.with_context(|| format!("{name} has no profile: boot it, or 'lazyroot profile record {name}'"))?;
    let name_of = trace::names(&image)?;
    let index = image.index.load()?;
    let mut files: Vec<File> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for entry in &profile.entries {
        let Some(extent) = entry.extent(&index) else { continue };
        let (_, size) = index.get(entry.position).expect("it has an extent");
        let bytes = extent.bytes(size).map_or(0, |(_, len)| len);
        let file = *known.entry(entry.position).or_insert_with(|| {
            files.push(File { name: name_of(entry.position), bytes: 0, at: entry.at, missed: entry.missed });
            files.len() - 1
        });
        files[file].bytes += bytes;
        files[file].missed = files[file].missed.min(entry.missed);
    }
    if format == Format::Json {
        let files: Vec<_> = files
            .iter()
            .map(|file| json!({ "file": file.name, "bytes": file.bytes, "at_us": file.at, "missed_runs": file.missed }))
            .collect();
        let document = json!({
            "image": image.id.to_string(),
            "runs": profile.runs,
            "extents": profile.hints(&index).len(),
            "bytes": profile.bytes(&index),
            "covers_us": BOOT,
            "files": files,
        });
        return print(&(serde_json::to_string_pretty(&document)? + "\n"));
    }
    let mut rows = vec![["READ AT", "BYTES", "MISSED", "FILE"].map(str::to_owned)];
    for file in &files {
        let missed = if file.missed == 0 { "-".to_owned() } else { format!("{} runs", file.missed) };
        rows.push([duration(file.at), size(file.bytes), missed, file.name.clone()]);
    }
    print(&columns(&rows))
}
