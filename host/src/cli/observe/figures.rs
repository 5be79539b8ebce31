//! The figures of guests as `stats` and `top` print them: a table, or JSON.

use std::collections::HashMap;

use anyhow::Result;
use lazyroot_proto::reads::Origin;
use serde::Serialize;

use crate::cli::observe::guests::Subject;
use crate::human::{columns, duration, percent, size};
use crate::serve::report::{GuestStats, Kind, SessionStats};

/// A guest as JSON.
#[derive(Serialize)]
pub struct GuestFigures<'a> {
    name: &'a str,
    kind: Kind,
    image_name: Option<&'a str>,
    #[serde(flatten)]
    stats: &'a SessionStats,
    /// Of the image's bytes, in percent.
    touched_percent: f64,
    /// Of the bytes that the boot profile brought and the guest watches, those that nobody has read.
    profile_wasted_bytes: u64,
    /// Reads by where their bytes came from, in percent of all.
    read_percent: HashMap<&'a str, f64>,
}

impl<'a> From<&'a Subject> for GuestFigures<'a> {
    fn from(subject: &'a Subject) -> Self {
        let (stats, guest) = (&subject.stats, &subject.stats.guest);
        Self {
            name: &subject.name,
            kind: subject.kind,
            image_name: subject.image_name.as_deref(),
            stats,
            touched_percent: stats.touched_percent(),
            profile_wasted_bytes: guest.profile_wasted_bytes(),
            read_percent: guest
                .reads
                .iter()
                .map(|(origin, reads)| (&**origin, percent(reads.count, guest.all_reads().count)))
                .collect(),
        }
    }
}

/// Reads from these origins, in percent of all.
pub fn share(guest: &GuestStats, origins: &[Origin]) -> f64 {
    percent(origins.iter().map(|origin| guest.reads_from(*origin).count).sum(), guest.all_reads().count)
}

pub fn json(subjects: &[Subject]) -> Result<String> {
    Ok(serde_json::to_string_pretty(&subjects.iter().map(GuestFigures::from).collect::<Vec<_>>())? + "\n")
}

/// One line for each; `rates` are the bytes per second sent to each by name, where they are known.
pub fn table(subjects: &[Subject], rates: &HashMap<String, u64>) -> String {
    let head =
        ["NAME", "IMAGE", "SENT", "SENT/S", "REQUESTS", "FAILED", "READS", "WAITED", "AHEAD", "TOUCHED", "READ P99"];
    let mut rows = vec![head.map(str::to_owned)];
    for subject in subjects {
        let (stats, guest) = (&subject.stats, &subject.stats.guest);
        rows.push([
            subject.name.clone(),
            subject.image(),
            size(stats.sent_bytes),
            rates.get(&subject.name).map_or("-".to_owned(), |rate| size(*rate)),
            stats.requests.to_string(),
            stats.failures.to_string(),
            guest.all_reads().count.to_string(),
            format!("{:.1} %", share(guest, &[Origin::Host])),
            format!("{:.1} %", share(guest, &[Origin::Profile, Origin::Neighbour])),
            format!("{:.1} %", stats.touched_percent()),
            duration(guest.read.p99),
        ]);
    }
    columns(&rows)
}
