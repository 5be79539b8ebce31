//! `lazyroot top`: the guests that read most, watched on a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use console::Term;

use crate::cli::context::{Context, runtime};
use crate::cli::observe::figures::{json, table};
use crate::cli::observe::guests::{self, Subject};
use crate::cli::output::{Format, print};

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

/// Shows all, again and again on a terminal.
pub fn top(args: &TopArgs, context: &Context) -> Result<ExitCode> {
    if let Some(vm) = &args.vm {
        return crate::cli::vm::processes::show(vm, context);
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
    use crate::serve::report::SessionStats;

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
