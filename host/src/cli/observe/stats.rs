//! `lazyroot stats` and `top`: what guests read, and what it cost.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use console::Term;
use lazyroot_proto::reads::Origin;
use serde::Serialize;

use crate::cli::context::{Context, runtime};
use crate::cli::observe::guests::{self, Subject};
use crate::cli::output::{Format, print};
use crate::human::{columns, duration, percent, size};
use crate::serve::report::{GuestStats, Kind, Latency, SessionStats};

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

/// Watch all guests, those that are sent most first; with VM, show the processes in it
///
/// Refreshes until Ctrl-C on a terminal; prints once without one, or as JSON. Reads that a guest's page cache answers
/// are not seen.
#[derive(clap::Args)]
pub struct TopArgs {
    /// Name or id of a VM whose processes to show
    #[arg(conflicts_with_all = ["once", "interval", "format"])]
    vm: Option<String>,
    /// Print once, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(short, long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A guest as JSON.
#[derive(Serialize)]
struct Shown<'a> {
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

impl<'a> From<&'a Subject> for Shown<'a> {
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
fn share(guest: &GuestStats, origins: &[Origin]) -> f64 {
    percent(origins.iter().map(|origin| guest.reads_from(*origin).count).sum(), guest.all_reads().count)
}

fn json(subjects: &[Subject]) -> Result<String> {
    Ok(serde_json::to_string_pretty(&subjects.iter().map(Shown::from).collect::<Vec<_>>())? + "\n")
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
        Format::Json => print(&(serde_json::to_string_pretty(&Shown::from(&subject))? + "\n")),
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

/// One line for each; `rates` are the bytes per second sent to each by name, where they are known.
fn table(subjects: &[Subject], rates: &HashMap<String, u64>) -> String {
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

/// Shows all, again and again on a terminal.
pub fn top(args: &TopArgs, context: &Context) -> Result<ExitCode> {
    if let Some(vm) = &args.vm {
        return crate::cli::vm::cp::top(vm, context);
    }
    let in_place = !args.once && args.format == Format::Table && std::io::stdout().is_terminal();
    runtime()?.block_on(async {
        if !in_place {
            let subjects = by_bytes(guests::all(context).await?, &HashMap::new());
            return match args.format {
                Format::Json => print(&json(&subjects)?),
                Format::Table => print(&table(&subjects, &HashMap::new())),
            };
        }
        let screen = Screen::open()?;
        tokio::select! {
            outcome = watch(args, context, &screen) => outcome?,
            pressed = tokio::signal::ctrl_c() => pressed?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Shows all on the screen until it is dropped.
async fn watch(args: &TopArgs, context: &Context, screen: &Screen) -> Result<()> {
    let mut before: Option<(Instant, HashMap<String, u64>)> = None;
    loop {
        let (now, subjects) = (Instant::now(), guests::all(context).await?);
        let rates = before.map(|(then, sent)| rates(&subjects, &sent, now - then)).unwrap_or_default();
        let subjects = by_bytes(subjects, &rates);
        screen.show(&table(&subjects, &rates))?;
        before = Some((now, subjects.iter().map(|one| (one.name.clone(), one.stats.sent_bytes)).collect()));
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

/// Bytes per second sent to each since `sent` was taken down.
fn rates(subjects: &[Subject], sent: &HashMap<String, u64>, since: Duration) -> HashMap<String, u64> {
    let rate = |subject: &Subject| {
        let more = subject.stats.sent_bytes.saturating_sub(*sent.get(&subject.name)?);
        Some((subject.name.clone(), (more as f64 / since.as_secs_f64().max(1e-3)) as u64))
    };
    subjects.iter().filter_map(rate).collect()
}

/// Those that are sent most now first, then those that were.
fn by_bytes(mut subjects: Vec<Subject>, rates: &HashMap<String, u64>) -> Vec<Subject> {
    let sent = |subject: &Subject| (rates.get(&subject.name).copied().unwrap_or(0), subject.stats.sent_bytes);
    subjects.sort_by(|a, b| sent(b).cmp(&sent(a)).then_with(|| a.name.cmp(&b.name)));
    subjects
}

/// A terminal that is written over in place. Its cursor comes back when dropped.
struct Screen(Term);

impl Screen {
    fn open() -> Result<Self> {
        let term = Term::buffered_stdout();
        term.hide_cursor()?;
        term.clear_screen()?;
        term.flush()?;
        Ok(Self(term))
    }

    fn show(&self, table: &str) -> Result<()> {
        let (height, width) = self.0.size();
        let (height, width) = (usize::from(height).max(3), usize::from(width));
        // The last line stays free: writing in its last column would scroll.
        let (lines, room) = (table.lines().count(), height - 2);
        self.0.move_cursor_to(0, 0)?;
        for line in table.lines().take(room) {
            self.0.clear_line()?;
            self.0.write_line(&line.chars().take(width).collect::<String>())?;
        }
        if lines > room {
            self.0.clear_line()?;
            self.0.write_str(&format!("... and {} more", lines - room))?;
        }
        self.0.clear_to_end_of_screen()?;
        Ok(self.0.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        let _ = self.0.write_line("");
        let _ = self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn those_that_are_sent_most_now_come_first() {
        let subject = |name: &str, sent_bytes| {
            let stats = SessionStats { sent_bytes, ..SessionStats::default() };
            Subject::for_tests(name, stats, PathBuf::new())
        };
        let before = HashMap::from([("a", 100), ("b", 900)].map(|(name, sent)| (name.to_owned(), sent)));
        let now = vec![subject("a", 300), subject("b", 1000), subject("new", 5000)];
        let rates = rates(&now, &before, Duration::from_secs(2));
        assert_eq!(rates, HashMap::from([("a", 100), ("b", 50)].map(|(name, rate)| (name.to_owned(), rate))));
        let names: Vec<_> = by_bytes(now, &rates).into_iter().map(|subject| subject.name).collect();
        assert_eq!(names, ["a", "b", "new"]);
    }
}
