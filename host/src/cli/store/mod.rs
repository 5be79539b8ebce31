//! `lazyroot store`: looking inside images without mounting them and without root, and keeping the store in order.
//!
//! One file per verb, and two that verbs share: `image_path` (the argument) and `file_record` (a file in a list). What
//! the verbs do is in `crate::store`; names of images are given and removed by `lazyroot image`.

mod copy;
mod du;
mod file_record;
mod find;
mod gc;
mod image_path;
mod list;
mod push;
mod stat;
mod stats;
mod verify;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::upstreams::UpstreamArgs;
use crate::store::Store;

/// What to do with the store.
#[derive(clap::Subcommand)]
pub enum StoreCommand {
    /// List files of an image, as ls -l does
    Ls(WithUpstreams<list::LsArgs>),
    /// Write files of an image to standard output
    Cat(WithUpstreams<copy::CatArgs>),
    /// Show all that is known of files of an image, and which images share their content
    Stat(WithUpstreams<stat::StatArgs>),
    /// Show a folder of an image as a tree
    Tree(WithUpstreams<list::TreeArgs>),
    /// Find files of an image
    Find(Box<WithUpstreams<find::FindArgs>>),
    /// How much an image's folders take, and how much of it other images have too
    Du(WithUpstreams<du::DuArgs>),
    /// Copy files out of an image
    Cp(WithUpstreams<copy::CpArgs>),
    Push(push::PushArgs),
    /// Read every object and check it against its digest
    Verify(WithUpstreams<verify::VerifyArgs>),
    /// Add up what is in the store
    Stats(stats::StatsArgs),
    /// Remove what no named or used image needs
    Gc(gc::GcArgs),
}

/// A command's arguments, and where images come from that the store does not have.
#[derive(clap::Args)]
pub struct WithUpstreams<T: clap::Args> {
    #[command(flatten)]
    args: T,
    #[command(flatten)]
    source: UpstreamArgs,
}

impl<T: clap::Args> WithUpstreams<T> {
    fn run(&self, context: &Context, command: fn(&T, &Store) -> Result<ExitCode>) -> Result<ExitCode> {
        command(&self.args, &self.source.open(context)?)
    }
}

/// Runs `lazyroot store`.
///
/// # Errors
/// If the store cannot be opened or the command fails.
pub fn run(command: StoreCommand, context: &Context) -> Result<ExitCode> {
    let store = || Store::open(&context.home, context.store.as_deref());
    match command {
        StoreCommand::Ls(args) => args.run(context, list::ls),
        StoreCommand::Cat(args) => args.run(context, copy::cat),
        StoreCommand::Stat(args) => args.run(context, stat::stat),
        StoreCommand::Tree(args) => args.run(context, list::tree),
        StoreCommand::Find(args) => args.run(context, find::find),
        StoreCommand::Du(args) => args.run(context, du::du),
        StoreCommand::Cp(args) => args.run(context, copy::cp),
        StoreCommand::Push(args) => push::run(&args, context),
        StoreCommand::Verify(args) => args.run(context, verify::verify),
        StoreCommand::Stats(args) => stats::stats(&args, &store()?, context),
        StoreCommand::Gc(args) => gc::gc(&args, &store()?, context),
    }
}
