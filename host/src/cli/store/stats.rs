//! `lazyroot store stats`.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::context::runtime;
use crate::cli::observe::guests;
use crate::cli::observe::trace;
use crate::cli::output::{Format, output};
use crate::human::size;
use crate::store::{CacheUse, RemoteImages, Store, StoreStats, Trace};
use crate::text::printable;

/// Objects that are listed as the hottest.
const HOTTEST: usize = 10;

/// Files that are listed of those a guest reads now: its last ones.
const LATEST: usize = 3;

/// Arguments of `store stats`.
#[derive(clap::Args)]
pub struct StatsArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Everything, as JSON has it.
#[derive(Serialize)]
struct All {
    #[serde(flatten)]
    store: StoreStats,
    /// Absent if nothing was ever cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheStats>,
    hottest: Vec<Hot>,
    reading: Vec<Reading>,
}

/// The cache of what came from upstreams.
#[derive(Serialize)]
struct CacheStats {
    /// In it, on the disk.
    bytes: u64,
    #[serde(flatten)]
    counted: CacheUse,
    /// Of the bytes that were wanted, the share that it had.
    hit_ratio: Option<f64>,
}

/// An object that much is read of.
#[derive(Serialize)]
struct Hot {
    object: String,
    size: u64,
    /// A file that has it as content.
    file: String,
    /// Runs that read it: the last one of each image, and those under way.
    runs: u64,
    /// Their reads that a page cache did not answer.
    reads: u64,
}

/// A guest that runs.
#[derive(Serialize)]
struct Reading {
    name: String,
    image: String,
    /// What it was sent so far.
    sent_bytes: u64,
    /// What it read last, the newest first.
    files: Vec<String>,
}

pub(super) fn stats(args: &StatsArgs, store: &Store, context: &Context) -> Result<ExitCode> {
    let cache = RemoteImages::cache_usage(&context.home);
    let cache = cache.map(|(bytes, counted)| CacheStats { bytes, hit_ratio: counted.hit_ratio(), counted });
    let (hottest, reading) = runs(store, context)?;
    let all = All { store: store.stats()?, cache, hottest, reading };
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &all).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        let mut line = |what: &str, value: String| writeln!(out, "{what:<22}{value}");
        let stats = &all.store;
        line("images", format!("{} with {} names", stats.images, stats.names))?;
        line("objects", format!("{}, {}", stats.objects, size(stats.object_bytes)))?;
        line("on the disk", size(stats.disk_bytes))?;
        line("in all images", size(stats.image_bytes))?;
        line("each object once", size(stats.distinct_bytes))?;
        line("deduplication", format!("{:.2}", stats.dedup_ratio))?;
        line("objects shared", stats.shared_objects.to_string())?;
        line("in no image", size(stats.unreferenced_bytes))?;
        for pin in &stats.in_use {
            let image = pin.image.get(..12).unwrap_or_default();
            line("in use", format!("image {image} by {}", pin.shown()))?;
        }
        if let Some(cache) = &all.cache {
            line("cache", size(cache.bytes))?;
            let CacheUse { hits, hit_bytes, misses, miss_bytes } = cache.counted;
            if let Some(ratio) = cache.hit_ratio {
                let had = format!("{hits} reads, {}", size(hit_bytes));
                let fetched = format!("{misses} fetched, {}", size(miss_bytes));
                line("cache had", format!("{:.1} % of what was wanted: {had}; {fetched}", 100.0 * ratio))?;
            }
        }
        for hot in &all.hottest {
            let times = format!("{} reads in {} runs", hot.reads, hot.runs);
            line("hot", format!("{} ({}): {times}", hot.file, size(hot.size)))?;
        }
        for Reading { name, image, sent_bytes, files } in &all.reading {
            let last = if files.is_empty() { String::new() } else { format!("; last {}", files.join(", ")) };
            line("reading", format!("{} ({image}): {}{last}", printable(name), size(*sent_bytes)))?;
        }
        Ok(())
    })
}

/// What is read most, and what is read now.
fn runs(store: &Store, context: &Context) -> Result<(Vec<Hot>, Vec<Reading>)> {
    let mut counts = Counts::default();
    for image in store.images()? {
        if let Ok(Some(trace)) = store.trace(&image.id).read() {
            counts.add(store, &trace);
        }
    }
    let mut reading = Vec::new();
    let running = runtime()?.block_on(async {
        let mut running = Vec::new();
        for subject in guests::all(context).await? {
            let trace = subject.trace().await.ok();
            running.push((subject, trace));
        }
        anyhow::Ok(running)
    })?;
    for (subject, trace) in running {
        let files = trace.as_ref().map(|trace| counts.add(store, trace)).unwrap_or_default();
        let (name, image, sent_bytes) = (subject.name.clone(), subject.image(), subject.stats.sent_bytes);
        reading.push(Reading { name, image, sent_bytes, files });
    }
    Ok((counts.hottest(), reading))
}

#[derive(Default)]
struct Counts(HashMap<ObjectId, Hot>);

impl Counts {
    /// Counts a run's reads; the files it read last, the newest first. An image that is not in this store is left out.
    fn add(&mut self, store: &Store, trace: &Trace) -> Vec<String> {
        let named = store.resolve(&trace.image).and_then(|image| Ok((trace::names(&image)?, image.index.load()?)));
        let Ok((names, index)) = named else { return vec![] };
        let mut reads: HashMap<u32, (u64, u64)> = HashMap::new();
        for read in trace.reads.iter().filter(|read| read.origin.is_read()) {
            let (count, last) = reads.entry(read.extent.position).or_default();
            (*count, *last) = (*count + 1, read.at.max(*last));
        }
        for (&position, (count, _)) in &reads {
            let Some((id, size)) = index.get(position) else { continue };
            let hot = self.0.entry(id).or_insert_with(|| Hot {
                object: id.to_string(),
                size,
                file: names(position),
                runs: 0,
                reads: 0,
            });
            (hot.runs, hot.reads) = (hot.runs + 1, hot.reads + count);
        }
        let mut latest: Vec<(u64, u32)> = reads.iter().map(|(&position, &(_, last))| (last, position)).collect();
        latest.sort_unstable_by(|a, b| b.cmp(a));
        latest.into_iter().take(LATEST).map(|(_, position)| names(position)).collect()
    }

    /// Those that most runs read, and of these the ones with most reads.
    fn hottest(self) -> Vec<Hot> {
        let mut all: Vec<Hot> = self.0.into_values().collect();
        all.sort_by(|a, b| (b.runs, b.reads, &a.object).cmp(&(a.runs, a.reads, &b.object)));
        all.truncate(HOTTEST);
        all
    }
}
