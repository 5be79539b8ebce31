//! The command line: one file per verb, which parses, calls and prints.
//!
//! This file has the parser and the dispatch alone. What verbs share is in files that import no verb: `context`,
//! `output`, `background` and `upstreams`. What a verb does is in the rooms of the crate beside this one: `crate::vm`,
//! `crate::serve` and `crate::store`.

mod background;
mod context;
mod doctor;
mod image;
mod kernel;
mod manual;
#[cfg(target_os = "linux")]
mod mount;
mod observe;
mod output;
mod serve;
mod store;
mod upstreams;
mod vm;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use self::context::{Context, EXIT_OWN_ERROR};
use crate::complain::complain;
use crate::home::Home;

/// Boots virtual machines straight into container and bootc images that nobody unpacks.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    /// The composefs repository to use instead of the one in lazyroot's data folder
    #[arg(long, global = true, value_name = "DIR", env = "LAZYROOT_STORE")]
    store: Option<PathBuf>,
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Run(Box<vm::run::RunArgs>),
    Ps(vm::ps::PsArgs),
    Exec(vm::exec::ExecArgs),
    Shell(vm::shell::ShellArgs),
    Ssh(vm::ssh::SshArgs),
    #[command(hide = true)]
    SshProxy(vm::ssh::SshProxyArgs),
    Cp(vm::cp::CpArgs),
    Logs(vm::logs::LogsArgs),
    Port(vm::port::PortArgs),
    Inspect(vm::inspect::InspectArgs),
    Stop(vm::stop::StopArgs),
    Wait(vm::wait::WaitArgs),
    Rm(vm::rm::RmArgs),
    Start(vm::start::StartArgs),
    Update(vm::update::UpdateArgs),
    Resize(vm::resize::ResizeArgs),
    Snapshot(vm::snapshot::SnapshotArgs),
    Fork(vm::fork::ForkArgs),
    Commit(vm::commit::CommitArgs),
    Pause(vm::pause::PauseArgs),
    Resume(vm::pause::ResumeArgs),
    /// Brings images into the store and shows what is there
    #[command(subcommand)]
    Image(image::ImageCommand),
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    Stats(observe::stats::StatsArgs),
    Top(observe::top::TopArgs),
    Trace(observe::trace::TraceArgs),
    #[command(subcommand)]
    Profile(observe::profile::ProfileCommand),
    Serve(serve::ServeArgs),
    /// Looks inside images and keeps the store in order
    #[command(subcommand)]
    Store(store::StoreCommand),
    #[cfg(target_os = "linux")]
    Mount(mount::MountArgs),
    #[cfg(target_os = "linux")]
    Umount(mount::UmountArgs),
    Doctor(doctor::DoctorArgs),
    Completions(manual::CompletionsArgs),
    #[command(hide = true)]
    Man(manual::ManArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let launched = Instant::now();
    #[cfg(target_os = "linux")]
    crate::store::serve_if_storage_helper();
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_env("LAZYROOT_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        // Nobody may read our standard error any more, which is nothing to die of.
        .log_internal_errors(false)
        .init();
    match run(cli, launched) {
        Ok(code) => code,
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::from(EXIT_OWN_ERROR)
        }
    }
}

fn run(cli: Cli, launched: Instant) -> Result<ExitCode> {
    // These are about the program alone, and run where there may be no home.
    match &cli.verb {
        Verb::Completions(args) => return manual::completions(args, Cli::command()),
        Verb::Man(args) => return manual::man(args, Cli::command()),
        _ => {}
    }
    let context = Context { home: Home::open()?, store: cli.store, verbose: cli.verbose };
    match cli.verb {
        Verb::Image(command) => image::run(command, &context),
        Verb::Run(args) => vm::run::run(*args, &context, launched),
        Verb::Ps(args) => vm::ps::ps(&args, &context),
        Verb::Exec(args) => vm::exec::run(args, &context),
        Verb::Shell(args) => vm::shell::shell(&args, &context),
        Verb::Ssh(args) => vm::ssh::run(&args, &context),
        Verb::SshProxy(args) => vm::ssh::proxy(&args),
        Verb::Cp(args) => vm::cp::cp(&args, &context),
        Verb::Port(args) => vm::port::port(&args, &context),
        Verb::Logs(args) => vm::logs::run(&args, &context),
        Verb::Inspect(args) => vm::inspect::inspect(&args, &context),
        Verb::Stop(args) => vm::stop::stop(&args, &context),
        Verb::Wait(args) => vm::wait::wait(&args, &context),
        Verb::Rm(args) => vm::rm::rm(&args, &context),
        Verb::Start(args) => vm::start::start(&args, &context, launched, parse_run),
        Verb::Update(args) => vm::update::update(args, &context),
        Verb::Resize(args) => vm::resize::resize(&args, &context),
        Verb::Snapshot(args) => vm::snapshot::snapshot(&args, &context),
        Verb::Fork(args) => vm::fork::fork(&args, &context),
        Verb::Commit(args) => vm::commit::commit(&args, &context, launched, parse_run),
        Verb::Pause(args) => vm::pause::pause(&args, &context),
        Verb::Resume(args) => vm::pause::resume(&args, &context),
        Verb::Kernel(command) => kernel::run(command, &context),
        Verb::Stats(args) => observe::stats::stats(&args, &context),
        Verb::Top(args) => observe::top::top(&args, &context),
        Verb::Trace(args) => observe::trace::run(&args, &context),
        Verb::Profile(command) => observe::profile::run(command, &context, launched),
        Verb::Serve(args) => serve::run(&args, &context),
        Verb::Store(command) => store::run(command, &context),
        #[cfg(target_os = "linux")]
        Verb::Mount(args) => mount::run(&args, &context),
        #[cfg(target_os = "linux")]
        Verb::Umount(args) => mount::umount(&args),
        Verb::Doctor(args) => doctor::run(&args, &context),
        Verb::Completions(_) | Verb::Man(_) => unreachable!("done above"),
    }
}

/// The arguments of a command line of `run`.
fn parse_run(words: &[String]) -> Result<vm::run::RunArgs> {
    match Cli::try_parse_from(words)?.verb {
        Verb::Run(args) => Ok(*args),
        _ => anyhow::bail!("the VM was not made by 'run'"),
    }
}
