//! `lazyroot trace`: what a run read, in which order, and how long it waited.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lazyroot_proto::ObjectIndex;
use serde_json::json;

use crate::cli::context::{Context, runtime};
use crate::cli::observe::guests;
use crate::cli::output::{Format, print};
use crate::human::{columns, duration, size};
use crate::serve::report::{Waterfall, file_rows};
use crate::store::{BOOT, Image, Store, Trace};

/// Show what a run read, in which order, and how long it waited
///
/// NAME is a running VM, one that has ended and was kept, a mount's folder, a guest of a server (serve-PID/N), or an
/// image, whose last run is shown. Reads that the guest's page cache answers are not seen.
#[derive(clap::Args)]
pub struct TraceArgs {
    /// A VM, mount, guest of a server, or image
    #[arg(value_name = "NAME")]
    name: String,
    /// Draw it: time across, one row for each file
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    svg: Option<PathBuf>,
    /// Seconds after the first read that are shown
    #[arg(long, value_name = "SECONDS", default_value_t = BOOT / 1_000_000)]
    until: u64,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Shows a trace.
pub fn run(args: &TraceArgs, context: &Context) -> Result<ExitCode> {
    let store = Store::open(&context.home, context.store.as_deref())?;
    let (title, trace) = find(args, context, &store)?;
    let image = store.resolve(&trace.image).context("the image that was read")?;
    let (name_of, index) = (names(&image)?, image.index.load()?);
    let until = args.until.saturating_mul(1_000_000);
    if let Some(file) = &args.svg {
        let svg = Waterfall { trace: &trace, index: &index, names: &name_of, title: &title, until }.svg();
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.format {
        Format::Json => print(&(json(&trace, &index, &name_of, until)? + "\n")),
        Format::Table => print(&table(&trace, &index, &name_of, until)),
    }
}

/// The trace that is meant, and words for it.
fn find(args: &TraceArgs, context: &Context, store: &Store) -> Result<(String, Trace)> {
    let name = &args.name;
    let found = runtime()?.block_on(async {
        let subject = guests::find(context, name).await?;
        Ok::<_, anyhow::Error>((format!("{} ({})", subject.name, subject.image()), subject.trace().await))
    });
    match found {
        Ok((title, trace)) => Ok((title.clone(), trace.with_context(|| title)?)),
        // It may be an image. If it is not, what is said of VMs is the better answer.
        Err(error) => {
            let Ok(image) = store.resolve(name) else { return Err(error) };
            let trace = store.trace(&image.id).read()?;
            let trace =
                trace.with_context(|| format!("no run of {name} was recorded yet: 'lazyroot run {name}' does"))?;
            Ok((format!("{name}, last run"), trace))
        }
    }
}

/// Names for an image's objects by position: the first path, and how many more there are.
pub fn names(image: &Image) -> Result<impl Fn(u32) -> String + use<>> {
    let (paths, index) = (image.tree()?.paths()?, image.index.load()?);
    Ok(move |position| {
        let Some((id, _)) = index.get(position) else { return format!("object {position}") };
        match paths.get(&id) {
            Some((path, 0)) => crate::text::printable(&path.to_string_lossy()),
            Some((path, more)) => format!("{} (and {more} more)", crate::text::printable(&path.to_string_lossy())),
            None => id.to_string(),
        }
    })
}

fn table(trace: &Trace, index: &ObjectIndex, names: &dyn Fn(u32) -> String, until: u64) -> String {
    let rows = file_rows(trace, index, names, until);
    // Without a guest's kernel the first read is the beginning.
    let has_guest = trace.milestones.iter().any(|milestone| milestone.name == "init");
    let zero = if has_guest { 0 } else { rows.iter().map(|row| row.first()).min().unwrap_or(0) };
    let mut text = String::new();
    for milestone in &trace.milestones {
        let at = duration(milestone.at.saturating_sub(zero));
        text += format!("{} after {at} {}", milestone.name, milestone.text).trim_end();
        text.push('\n');
    }
    let shown: usize = rows.iter().map(|row| row.reads.len()).sum();
    let mut cells = vec![["FIRST READ", "READS", "BYTES", "WAITED", "FROM", "FILE"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        [
            // Files are read in microseconds of each other.
            format!("{:.1} ms", (row.first() - zero) as f64 / 1e3),
            row.reads.len().to_string(),
            size(row.bytes),
            duration(row.waited),
            row.origin().name().to_owned(),
            row.name.clone(),
        ]
    }));
    text += &columns(&cells);
    match (trace.reads.len() - shown) as u64 + trace.more_reads {
        0 => text,
        more => text + &format!("and {more} later reads\n"),
    }
}

fn json(trace: &Trace, index: &ObjectIndex, names: &dyn Fn(u32) -> String, until: u64) -> Result<String> {
    let mut reads = Vec::new();
    for row in file_rows(trace, index, names, until) {
        for read in &row.reads {
            let size = index.get(read.extent.position).map_or(0, |(_, size)| size);
            let (offset, len) = read.extent.bytes(size).unwrap_or_default();
            let object = index.get(read.extent.position).map(|(id, _)| id.to_string());
            reads.push(json!({
                "file": row.name,
                "object": object,
                "offset": offset,
                "len": len,
                "at_us": read.at,
                "waited_us": read.waited,
                "origin": read.origin.name(),
            }));
        }
    }
    reads.sort_by_key(|read| read["at_us"].as_u64());
    let milestones: Vec<_> = trace
        .milestones
        .iter()
        .map(|milestone| json!({ "name": milestone.name, "at_us": milestone.at, "text": milestone.text }))
        .collect();
    let not_shown = (trace.reads.len() - reads.len()) as u64 + trace.more_reads;
    Ok(serde_json::to_string_pretty(&json!({
        "image": trace.image,
        "since": trace.since,
        "milestones": milestones,
        "reads": reads,
        "more_reads": not_shown,
    }))?)
}
