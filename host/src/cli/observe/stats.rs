//! `lazyroot stats`: what guests read, and what it cost.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Result;
use lazyroot_proto::reads::Origin;

use crate::cli::context::{Context, runtime};
use crate::cli::observe::figures::{GuestFigures, json, share, table};
use crate::cli::observe::guests::{self, Subject};
use crate::cli::output::{Format, print};
use crate::human::{columns, duration, percent, size};
use crate::serve::report::Latency;

/// Show what guests read, where it came from, and how long they waited
///
/// Reads that a guest's page cache answers are not seen, nor those of what the boot profile has put ready: they reach
/// neither lazyroot's part of the guest nor the host.
#[derive(clap::Args)]
pub struct StatsArgs {
    /// A VM, a mount's folder, or a guest of a server (serve-PID/N) [default: one line for each that runs]
    #[arg(value_name = "VM")]
    name: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Shows one guest, or all.
pub fn stats(args: &StatsArgs, context: &Context) -> Result<ExitCode> {
    let Some(name) = &args.name else {
        let all = runtime()?.block_on(guests::all(context))?;
        return match args.format {
            Format::Json => print(&json(&all)?),
            Format::Table => print(&table(&all, &HashMap::new())),
        };
    };
    let subject = runtime()?.block_on(guests::find(context, name))?;
    match args.format {
        Format::Json => print(&(serde_json::to_string_pretty(&GuestFigures::from(&subject))? + "\n")),
        Format::Table => print(&details(&subject)),
    }
}

fn details(subject: &Subject) -> String {
    let (stats, guest) = (&subject.stats, &subject.stats.guest);
    let bytes = size;
    let mut rows = vec![
        ["image".to_owned(), subject.image()],
        [
            "sent".to_owned(),
            format!("{} in {} requests, {} failed", bytes(stats.sent_bytes), stats.requests, stats.failures),
        ],
        [
            "touched".to_owned(),
            format!(
                "{} of {} in the image ({:.1} %), {} of {} objects",
                bytes(stats.touched_bytes),
                bytes(stats.image_bytes),
                stats.touched_percent(),
                stats.touched_objects,
                stats.image_objects
            ),
        ],
        ["verified".to_owned(), bytes(guest.verified_bytes)],
        [
            "profile".to_owned(),
            format!(
                "{} put ready, {} watched: of these {} read, {} wasted ({:.1} %)",
                bytes(guest.unseen.bytes),
                bytes(guest.profile_bytes),
                bytes(guest.profile_used_bytes),
                bytes(guest.profile_wasted_bytes()),
                percent(guest.profile_wasted_bytes(), guest.profile_bytes)
            ),
        ],
        ["neighbours".to_owned(), format!("{} came along", bytes(guest.neighbour_bytes))],
    ];
    if stats.ended {
        rows.push(["ended".to_owned(), "its session is over".to_owned()]);
    }
    let mut reads = vec![["READS FROM", "COUNT", "SHARE", "BYTES"].map(str::to_owned)];
    for origin in Origin::ALL.into_iter().filter(|origin| *origin != Origin::Preloaded) {
        let of = guest.reads_from(origin);
        reads.push([
            origin.name().to_owned(),
            of.count.to_string(),
            format!("{:.1} %", share(guest, &[origin])),
            bytes(of.bytes),
        ]);
    }
    let mut times = vec![["LATENCY", "COUNT", "P50", "P99", "MAX"].map(str::to_owned)];
    for (name, Latency { count, p50, p99, max }) in
        [("LOOKUP", guest.lookup), ("READ", guest.read), ("wire", guest.wire)]
    {
        let [p50, p99, max] = [p50, p99, max].map(duration);
        times.push([name.to_owned(), count.to_string(), p50, p99, max]);
    }
    format!(
        "{}\n{}\n{}\nWhat the page cache answers, or programs find where the profile put it, is not seen here. Latencies are upper bounds, less than twice the true value.\n",
        columns(&rows),
        columns(&reads),
        columns(&times)
    )
}
