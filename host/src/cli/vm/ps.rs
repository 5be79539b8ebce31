//! `lazyroot ps`: which VMs there are.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::{Context, runtime};
use crate::cli::output::{Format, print};
use crate::cli::vm::report::{VmReport, report};
use crate::human::{age, columns};
use crate::vm::instance::{self, State, Vms};

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

/// Lists VMs.
pub fn ps(args: &PsArgs, context: &Context) -> Result<ExitCode> {
    let mut found = Vms::open(&context.home)?.list()?;
    found.retain(|vm| args.all || vm.state == State::Alive);
    if args.quiet {
        return print(&found.iter().map(|vm| format!("{}\n", vm.record.name)).collect::<String>());
    }
    let shown = runtime()?.block_on(async {
        // All at once: one that does not answer costs its second only once.
        let all: Vec<_> = found.into_iter().map(|vm| tokio::spawn(report(vm))).collect();
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

fn table(shown: &[VmReport]) -> String {
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
