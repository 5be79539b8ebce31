//! The processes of a running VM, which `lazyroot top VM` shows.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::find::find_running;
use crate::human::columns;
use crate::text::printable;
use crate::vm::guest::copy;

/// Shows processes.
pub fn show(vm: &str, context: &Context) -> Result<ExitCode> {
    let vm = find_running(context, vm)?;
    let text = runtime()?.block_on(copy::processes(&vm.dir)).with_context(|| format!("VM '{}'", vm.record.name))?;
    let mut rows = vec![["PID", "PPID", "UID", "STATE", "KIB", "SECONDS", "COMMAND"].map(str::to_owned)];
    for line in text.lines() {
        let fields: Vec<String> = line.splitn(7, '\t').map(printable).collect();
        rows.push(fields.try_into().ok().context("the guest broke the protocol")?);
    }
    print(&columns(&rows))
}
