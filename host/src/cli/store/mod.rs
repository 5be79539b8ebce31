//! `lazyroot store`: keeping the store in order.

mod push;

use std::process::ExitCode;

use anyhow::Result;

use super::Context;

/// What to do with the store.
#[derive(clap::Subcommand)]
pub enum StoreCommand {
    Push(push::PushArgs),
}

/// Runs `lazyroot store`.
///
/// # Errors
/// If the store cannot be opened or the command fails.
pub fn run(command: StoreCommand, context: &Context) -> Result<ExitCode> {
    match command {
        StoreCommand::Push(args) => push::run(&args, context),
    }
}
