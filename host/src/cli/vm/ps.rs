//! `lazyroot ps` and `inspect`: which VMs there are, and how they are.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::cli::context::{Context, runtime};
use crate::cli::output::{Format, print};
use crate::human::{age, columns};
use crate::vm::instance::control;
use crate::vm::instance::status::{Status, Timings};
use crate::vm::instance::{self, Record, State, VmEntry, Vms};

/// List the VMs that run
#[derive(clap::Args)]
pub struct PsArgs {
    /// Those that have ended too
    #[arg(short, long)]
    all: bool,
    /// Print names only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Show all about a VM, as JSON
#[derive(clap::Args)]
pub struct InspectArgs {
    /// Name or id of the VM
    vm: String,
}

/// A VM as it is shown.
#[derive(Serialize)]
struct StatusRow {
    id: String,
    /// `starting`, `running`, `paused`, `stopping`, `unresponsive`, `exited`, `failed` or `lost`.
    state: String,
    #[serde(flatten)]
    record: Record,
    exit_status: Option<u8>,
    reason: Option<String>,
    ended: Option<u64>,
    timings: Option<Timings>,
    /// How it is, if it lives and answers.
    status: Option<Status>,
    /// Folder with its sockets and logs.
    dir: std::path::PathBuf,
}

/// Lists VMs.
pub fn ps(args: &PsArgs, context: &Context) -> Result<ExitCode> {
    let mut found = Vms::open(&context.home)?.list()?;
    found.retain(|vm| args.all || vm.state == State::Alive);
    if args.quiet {
        return print(&found.iter().map(|vm| format!("{}\n", vm.record.name)).collect::<String>());
    }
    let shown = runtime()?.block_on(async {
        // All at once: one that does not answer costs its second only once.
        let all: Vec<_> = found.into_iter().map(|vm| tokio::spawn(show(vm))).collect();
        let mut shown = Vec::new();
        for one in all {
            shown.push(one.await?);
        }
        Ok::<_, anyhow::Error>(shown)
    })?;
    match args.format {
        Format::Json => print(&(serde_json::to_string_pretty(&shown)? + "\n")),
        Format::Table => print(&table(&shown)),
    }
}

/// Shows one VM.
pub fn inspect(args: &InspectArgs, context: &Context) -> Result<ExitCode> {
    let vm = Vms::open(&context.home)?.find(&args.vm)?;
    let shown = runtime()?.block_on(show(vm));
    print(&(serde_json::to_string_pretty(&shown)? + "\n"))
}

async fn show(vm: VmEntry) -> StatusRow {
    let status = match vm.state {
        State::Alive => control::status(&vm.dir).await.ok(),
        _ => None,
    };
    let id = vm.id();
    let (state, end) = match (vm.state, &status) {
        (State::Alive, Some(status)) => (status.phase.to_string(), None),
        (State::Alive, None) => ("unresponsive".to_owned(), None),
        (State::Ended(end), _) if end.status.is_some() => ("exited".to_owned(), Some(end)),
        (State::Ended(end), _) => ("failed".to_owned(), Some(end)),
        (State::Lost, _) => ("lost".to_owned(), None),
        (State::Stopped, _) => ("stopped".to_owned(), None),
    };
    let timings = status.as_ref().map(|status| status.timings).or(end.as_ref().map(|end| end.timings));
    StatusRow {
        id,
        state,
        exit_status: end.as_ref().and_then(|end| end.status),
        ended: end.as_ref().map(|end| end.at),
        reason: end.and_then(|end| end.reason),
        timings,
        record: vm.record,
        status,
        dir: vm.dir,
    }
}

fn table(shown: &[StatusRow]) -> String {
    let mut rows = vec![["NAME", "STATE", "IMAGE", "COMMAND", "CREATED"].map(str::to_owned)];
    for vm in shown {
        let record = &vm.record;
        let state = match vm.exit_status {
            Some(status) => format!("exited ({status})"),
            None => vm.state.clone(),
        };
        // A digest is told by its first digits, as everywhere.
        let digest = record.image.split_once(':').map_or(record.image.as_str(), |(_, digits)| digits);
        let image = record.image_name.clone().unwrap_or_else(|| digest.chars().take(12).collect());
        let command = if record.command.is_empty() { "(init)".to_owned() } else { record.command.join(" ") };
        let created = format!("{} ago", age(instance::now().saturating_sub(record.created)));
        rows.push([record.name.clone(), state, image, shorten(&command), created]);
    }
    columns(&rows)
}

/// A command that would fill the line is cut.
fn shorten(command: &str) -> String {
    const MOST: usize = 32;
    let command = crate::text::printable(command);
    match command.chars().count() > MOST {
        true => command.chars().take(MOST - 3).collect::<String>() + "...",
        false => command,
    }
}

/// Boot timings for people.
pub fn timings(timings: &Timings) -> String {
    let seconds = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.2} s", time.as_secs_f64()));
    format!(
        "hypervisor started after  {:.0} ms\n\
         guest init after          {}\n\
         root mounted at           {} of the guest's clock\n\
         ready after               {}\n",
        timings.hypervisor_started.as_secs_f64() * 1e3,
        seconds(timings.guest_init),
        seconds(timings.guest_clock_mounted),
        seconds(timings.ready),
    )
}
