//! What a shell and man(1) need to know of the command line: made from the very definition that parses it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

use crate::cli::output::output;

/// Print a completion script for a shell
///
/// For bash: lazyroot completions bash >/etc/bash_completion.d/lazyroot
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Write the manual's pages, one for each verb, into a folder
#[derive(clap::Args)]
pub struct ManArgs {
    /// The folder, made if it is not there
    dir: PathBuf,
}

/// Prints the script.
pub fn completions(args: &CompletionsArgs, mut verbs: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut verbs, "lazyroot", &mut script);
    output(|out| Ok(out.write_all(&script)?))
}

/// Writes the pages.
pub fn man(args: &ManArgs, verbs: Command) -> Result<ExitCode> {
    let write = || {
        std::fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(verbs, &args.dir)
    };
    write().with_context(|| format!("cannot write the manual to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
