//! `lazyroot run`: boot an ephemeral VM straight into an image.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lazyroot_proto::boot::INITS;
use lazyroot_proto::exec::Exec;
use tokio::runtime::Runtime;

use crate::cli::background;
use crate::cli::context::Context;
use crate::cli::output::Format;
use crate::cli::upstreams::UpstreamArgs;
use crate::cli::vm::logs::OWN_LOG;
use crate::cli::vm::process::{ProcessArgs, give_terminal, variables};
use crate::cli::vm::sizes::{disk_size, memory};
use crate::serve::ProfileUse;
use crate::store::{BOOT, Image, Store};
use crate::vm::guest::copy;
use crate::vm::guest::exec;
use crate::vm::guest::readiness::Wait;
use crate::vm::hypervisor::machine::Network;
use crate::vm::hypervisor::registry::BackendChoice;
use crate::vm::instance::disks::{Disks, Saved};
use crate::vm::instance::port_map::PortMap;
use crate::vm::instance::volume::Volume;
use crate::vm::instance::{State, Vms};
use crate::vm::launch::{self, Keep, Launch};

/// Boot an ephemeral VM into an image, and run a command in it or its own init
///
/// With a command: runs it as on this terminal; its exit status is lazyroot's (125: lazyroot failed, 126: the
/// command cannot be run, 127: there is no such command, 128+N: signal N ended it). Without: boots the image's
/// init on this console (Ctrl-A X ends the VM), or runs the OCI config's entrypoint if the image has no init.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Image to boot: a name, or its digest
    image: String,
    /// Command to run, and its arguments
    #[arg(last = true)]
    command: Vec<std::ffi::OsString>,
    /// Go on in the background; returns once the VM is ready, or says why it is not
    #[arg(short, long)]
    detach: bool,
    /// With --detach: remove the VM's logs and name when it ends
    #[arg(long, requires = "detach")]
    rm: bool,
    /// With --detach and --name: keep what the guest writes on a sparse disk of this size; 'stop', 'start' and 'rm' it
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "16G",
        value_parser = disk_size, requires_all = ["detach", "name"], conflicts_with = "rm")]
    persist: Option<u64>,
    /// Give the command a terminal
    #[arg(short, long, conflicts_with = "detach")]
    tty: bool,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    cpus: u32,
    /// Memory: MiB, or with a suffix (512M, 2G)
    #[arg(long, default_value = "1G", value_parser = memory)]
    memory: u32,
    /// Kernel to boot: a release from 'lazyroot kernel ls' (default: the image's own, else the newest)
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    #[command(flatten)]
    process: ProcessArgs,
    /// Name of the VM, also its host name
    #[arg(long)]
    name: Option<String>,
    /// Words to add to the kernel command line
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// Hypervisor: qemu (KVM where it works), qemu:kvm, qemu:tcg, or vfkit on macOS
    #[arg(long, default_value_t)]
    hypervisor: BackendChoice,
    /// Let connections to a port or socket here reach one in the guest: [ADDRESS:]PORT:GUEST or /PATH:GUEST
    #[arg(short = 'p', long = "publish", value_name = "HOST:GUEST")]
    ports: Vec<PortMap>,
    /// Show the guest a folder of this machine
    #[arg(short = 'v', long = "volume", value_name = "HOST:GUEST[:ro]")]
    volumes: Vec<Volume>,
    /// The guest's network (default: user, which needs no privilege)
    #[arg(long, value_enum, value_name = "NETWORK")]
    net: Option<NetworkChoice>,
    /// Hand the image's systemd a credential
    #[arg(long = "credential", value_name = "NAME=FILE", value_parser = credential)]
    credentials: Vec<(String, PathBuf)>,
    /// Have the image's systemd start this unit
    #[arg(long = "unit", value_name = "FILE")]
    units: Vec<PathBuf>,
    /// With --detach and without a command: when the VM counts as ready: agent, ready, ssh, or a systemd unit
    #[arg(long, value_name = "WHAT", requires = "detach", conflicts_with = "command")]
    wait: Option<Wait>,
    /// Say more on stderr; twice for everything, and the guest's console while a command runs
    #[arg(long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Send nothing ahead of need, and do not learn from this boot
    #[arg(long)]
    no_profile: bool,
    /// Say on stderr, at the end, how long the launch took and what was fetched
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table", conflicts_with = "detach")]
    report: Option<Format>,
    #[command(flatten)]
    source: UpstreamArgs,
}

/// Parses the whole command line of a `run`: a persistent VM is started again with the words that made it.
pub type ParseRun = fn(&[String]) -> Result<RunArgs>;

/// What the guest's network card is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum NetworkChoice {
    /// A network in user space: out, and to services of this machine
    User,
    /// No network card
    None,
}

impl From<NetworkChoice> for Network {
    fn from(choice: NetworkChoice) -> Self {
        match choice {
            NetworkChoice::User => Self::User,
            NetworkChoice::None => Self::None,
        }
    }
}

fn credential(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !name.contains('/') => Ok((name.to_owned(), file.into())),
        _ => Err(format!("'{text}' is no NAME=FILE")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A unit by its file's name, as systemd knows it.
fn unit(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.contains('.'));
    let name =
        name.with_context(|| format!("'{}' is named like no unit: use NAME.service or the like", path.display()))?;
    Ok((name.to_owned(), read(path)?))
}

/// Runs the VM to its end.
pub fn run(args: RunArgs, context: &Context, launched: Instant) -> Result<ExitCode> {
    if args.detach && !background::is_here() {
        return background::start();
    }
    let Some((bytes, name)) = args.persist.zip(args.name.clone()) else { return boot(args, context, None, launched) };
    let store = args.source.open(context)?;
    let image = store.resolve(&args.image)?;
    let words = std::env::args_os().map(std::ffi::OsString::into_string).collect::<Result<Vec<_>, _>>();
    let saved = Saved {
        arguments: words.map_err(|word| anyhow::anyhow!("{} cannot be kept: it is not UTF-8", word.display()))?,
        folder: std::env::current_dir()?,
        store: context.store.as_deref().map(std::path::absolute).transpose()?,
        image: image.id.to_string(),
        cpus: None,
        memory_mib: None,
        kernel: None,
    };
    Vms::open(&context.home)?.check_free(&name)?;
    let disks = Disks::open(&context.home)?;
    disks.create(&name, &saved, bytes)?;
    let disk = disks.disk(&name);
    disks.keep_image(&name, &store, &image);
    let claim = disks.claim(&name)?;
    let outcome = boot(args, context, Some(disk), launched);
    // One that never came up is none. One that did has left a folder of its own, whatever became of it.
    if Vms::open(&context.home)?.find(&name).is_ok_and(|vm| vm.state == State::Stopped) {
        disks.remove(&name)?;
    }
    drop(claim);
    outcome
}

/// Starts a persistent VM again.
pub fn start(name: &str, saved: Saved, context: &Context, launched: Instant, parse: ParseRun) -> Result<ExitCode> {
    let (args, context) = again(name, saved, context, parse)?;
    let disk = Disks::open(&context.home)?.disk(name);
    boot(args, &context, Some(disk), launched)
}

/// Boots a persistent VM so that nothing runs in it, and makes an image of what its guest has written.
pub fn commit(
    name: &str,
    saved: Saved,
    to: &str,
    context: &Context,
    launched: Instant,
    parse: ParseRun,
) -> Result<Image> {
    let (mut args, context) = again(name, saved, context, parse)?;
    // Nothing that would be written to the disk, or could fail, for a guest that does nothing.
    args.net = Some(NetworkChoice::None);
    (args.ports, args.volumes, args.credentials, args.units) = Default::default();
    let store = Arc::new(args.source.open(&context)?);
    let mut launch = launch(args, &store, &context, ProfileUse::Ignore)?;
    launch.disk = Some(Disks::open(&context.home)?.disk(name));
    let base = launch.image.clone();
    store.ensure_can_commit(&base)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(launch::run_around(&context.home, &store, launch, launched, async |dir: PathBuf| {
        let (store, to) = (store.clone(), to.to_owned());
        copy::upper(&dir, move |layer| store.commit(&base, layer, &to)).await
    }))
}

/// The arguments by which a persistent VM is started again, and what they are to be read with.
fn again(name: &str, saved: Saved, context: &Context, parse: ParseRun) -> Result<(RunArgs, Context)> {
    if let Err(error) = std::env::set_current_dir(&saved.folder) {
        tracing::warn!("cannot enter {}: {error}; relative paths begin here", saved.folder.display());
    }
    let mut args = parse(&saved.arguments)?;
    args.image = saved.image;
    args.name = Some(name.to_owned());
    args.cpus = saved.cpus.unwrap_or(args.cpus);
    args.memory = saved.memory_mib.unwrap_or(args.memory);
    args.kernel = saved.kernel.or(args.kernel);
    Ok((args, Context { home: context.home.clone(), store: saved.store, verbose: context.verbose }))
}

/// Runs the VM, with its changes on a disk if there is one.
fn boot(args: RunArgs, context: &Context, disk: Option<PathBuf>, launched: Instant) -> Result<ExitCode> {
    let store = args.source.open(context)?;
    let (detach, rm, report) = (args.detach, args.rm, args.report);
    let profile = if args.no_profile { ProfileUse::Ignore } else { ProfileUse::Follow };
    let mut launch = launch(args, &store, context, profile)?;
    launch.disk = disk;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if detach {
        background::enter();
        let keep = if rm { Keep::No } else { Keep::UntilRemoved };
        let up = |name: &str, dir: &Path| {
            let log = File::create(dir.join(OWN_LOG)).context("cannot make the VM's log")?;
            background::ready(name, &log)
        };
        let outcome = runtime.block_on(launch::run_detached(&context.home, &store, launch, keep, launched, up));
        return Ok(outcome?.report().into());
    }
    run_here(&store, launch, report, context, runtime, launched)
}

/// Boots for the image's profile, for at most so long.
pub fn record(args: RunArgs, at_most: Option<Duration>, context: &Context, launched: Instant) -> Result<ExitCode> {
    if args.detach || args.no_profile {
        bail!("a boot that is recorded is neither in the background nor without a profile: leave the option away");
    }
    let store = args.source.open(context)?;
    let report = args.report;
    let mut launch = launch(args, &store, context, ProfileUse::Record)?;
    launch.at_most = match launch.command {
        Some(_) => at_most,
        None => Some(at_most.unwrap_or(Duration::from_micros(BOOT))),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    run_here(&store, launch, report, context, runtime, launched)
}

/// What the arguments ask for.
fn launch(args: RunArgs, store: &Store, context: &Context, profile: ProfileUse) -> Result<Launch> {
    let image = store.resolve(&args.image)?;
    let command = command(&args, &image)?;
    if command.is_some() && !(args.credentials.is_empty() && args.units.is_empty()) {
        bail!("--credential and --unit are for the image's init, which does not run beside a command");
    }
    Ok(Launch {
        image,
        command,
        kernel: args.kernel,
        cpus: args.cpus,
        memory_mib: args.memory,
        name: args.name,
        append: args.append,
        hypervisor: args.hypervisor,
        show_console: context.verbose + args.verbose > 0,
        network: args.net.map(Network::from),
        ports: args.ports,
        volumes: args.volumes,
        credentials: args
            .credentials
            .iter()
            .map(|(name, path)| Ok((name.clone(), read(path)?)))
            .collect::<Result<_>>()?,
        units: args.units.iter().map(|path| unit(path)).collect::<Result<_>>()?,
        wait: args.wait.unwrap_or_default(),
        profile,
        at_most: None,
        disk: None,
    })
}

/// Runs the VM to its end, in the foreground.
fn run_here(
    store: &Store,
    launch: Launch,
    report: Option<Format>,
    context: &Context,
    runtime: Runtime,
    launched: Instant,
) -> Result<ExitCode> {
    let result = runtime.block_on(launch::run(&context.home, store, launch, launched));
    // A read of our standard input may still be under way: it must not hold us up.
    runtime.shutdown_background();
    let (status, result) = result?;
    if let Some((report, format)) = result.zip(report) {
        let text = match format {
            Format::Table => report.lines(),
            Format::Json => serde_json::to_string(&report)?,
        };
        // Nobody may read it: the command's status is what counts.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    Ok(status.into())
}

/// What to run: the command line's command, else nothing if the image has an init, else the entrypoint.
fn command(args: &RunArgs, image: &Image) -> Result<Option<Exec>> {
    let config = image.config.clone().unwrap_or_default();
    let given: Vec<Vec<u8>> = args.command.iter().map(|word| word.clone().into_vec()).collect();
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect::<Vec<_>>();
    let (argv, own_terminal) = if !given.is_empty() {
        (given, false)
    } else {
        let tree = image.tree()?;
        if INITS.iter().any(|init| tree.exists(init)) {
            let ProcessArgs { env, workdir, user } = &args.process;
            if args.tty || user.is_some() || workdir.is_some() || !env.is_empty() {
                bail!("--tty, --user, --workdir and --env are for a command: give one after --");
            }
            return Ok(None);
        }
        let argv = [bytes(&config.entrypoint), bytes(&config.cmd)].concat();
        if argv.is_empty() {
            bail!("the image has no init ({}) and no entrypoint: give a command after --", INITS.join(", "));
        }
        // Nobody asked for pipes: the entrypoint is what the user meets.
        (argv, !args.detach && exec::on_terminal())
    };
    let mut env = bytes(&config.env);
    env.extend(variables(&args.process.env));
    let workdir = args.process.workdir.clone().unwrap_or(config.working_dir);
    let user = args.process.user.clone().unwrap_or(config.user);
    let mut request = Exec { argv, env, workdir: workdir.into(), user: user.into(), terminal: None };
    if args.tty || own_terminal {
        give_terminal(&mut request, exec::window().context("-t needs a terminal on standard input")?);
    }
    Ok(Some(request))
}
