//! `lazyroot doctor`: whether this machine has what lazyroot needs, and how to get what it has not.

#[cfg(target_os = "linux")]
use std::fs;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::output::{Format, output};
use crate::cli::upstreams::configured;
use crate::human::size;
use crate::settings::Settings;
use crate::store::{RemoteImages, Store, UpstreamAddress, UpstreamSpec, check_upstream};
use crate::text::printable;
use crate::vm;
use crate::vm::check::{Check, Health};
use crate::vm::hypervisor::registry;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::Kernels;
#[cfg(not(target_os = "linux"))]
use crate::vm::podman_machine;

/// Less than this free on the store's disk is worth a word: an image is of this order.
const LITTLE_SPACE: u64 = 1 << 30;

/// Check that this machine has what lazyroot needs, and say how to mend what it has not
///
/// The exit status is 0 if VMs can run and images be imported, else 1. What is only slower, or only needed by some
/// verbs, is a warning.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Looks at everything; fails at nothing.
pub fn run(args: &DoctorArgs, context: &Context) -> Result<ExitCode> {
    let mut checks = vec![Check::good("home", format!("{}", context.home.data().display()))];
    checks.extend(store(context));
    checks.extend(machine(context));
    checks.extend(guest(context));
    checks.extend(sources());
    checks.extend(upstreams(context));
    let sick = checks.iter().any(|check| check.health == Health::Bad);
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &checks).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        for check in &checks {
            let sign = match check.health {
                Health::Good => "ok",
                Health::Warning => "warning",
                Health::Bad => "BAD",
            };
            writeln!(out, "{sign:8} {:12} {}", check.name, printable(&check.found))?;
            if let Some(mend) = &check.mend {
                writeln!(out, "{:8} {:12} -> {mend}", "", "")?;
            }
        }
        Ok(())
    })?;
    Ok(if sick { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The store: whether it opens, can be written, and has room.
fn store(context: &Context) -> Vec<Check> {
    let store = match Store::open(&context.home, context.store.as_deref()) {
        Ok(store) => store,
        Err(error) => return vec![Check::bad("store", format!("{error:#}"), "see the message")],
    };
    let mut checks = Vec::new();
    let path = store.path();
    let shown = path.display();
    let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    checks.push(match (store.images(), writable) {
        (Err(error), _) => Check::bad("store", format!("{error:#}"), "lazyroot store verify"),
        (Ok(images), Ok(())) => Check::good("store", format!("{shown}: {} images", images.len())),
        (Ok(_), Err(error)) => Check::warning(
            "store",
            format!("{shown} can be read but not written: {error}"),
            "to import, use a store of your own: --store DIR, or run lazyroot as its owner",
        ),
    });
    if let Ok(stat) = rustix::fs::statvfs(path) {
        let free = stat.f_bavail * stat.f_frsize;
        let found = format!("{} free at the store", size(free));
        checks.push(match free {
            LITTLE_SPACE.. => Check::good("disk", found),
            _ => Check::warning("disk", found, "'lazyroot store gc' frees what no image needs; or use another --store"),
        });
    }
    checks
}

/// What boots in every VM.
fn guest(context: &Context) -> Vec<Check> {
    let guest_init = match vm::kernel::initramfs::guest_init_path(Arch::HOST) {
        Ok(path) => Check::good("guest-init", path.display().to_string()),
        Err(error) => Check::bad("guest-init", "not found", format!("{error:#}")),
    };
    let kernels = match Kernels::open(&context.home).and_then(|kernels| kernels.list()) {
        Ok(kernels) if !kernels.is_empty() => Check::good("kernels", format!("{} imported", kernels.len())),
        Ok(_) => Check::warning(
            "kernels",
            "none imported",
            "images that bring no kernel need one: 'lazyroot kernel import linux-image-....deb'",
        ),
        Err(error) => Check::bad("kernels", format!("{error:#}"), "see the message"),
    };
    vec![guest_init, kernels]
}

/// What running VMs and mounting needs.
#[cfg(target_os = "linux")]
fn machine(context: &Context) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut checks = vec![check_kernel(&release)];
    checks.extend(registry::detect(&context.home));
    checks.push(Check::device("fuse", Path::new("/dev/fuse"), "'lazyroot mount' needs it: 'modprobe fuse', and root"));
    checks
}

/// The kernel of this machine, as far as `lazyroot mount` needs it.
#[cfg(target_os = "linux")]
fn check_kernel(release: &str) -> Check {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| {
        filesystems.lines().any(|line| line.split_whitespace().next_back() == Some(name))
            || module_is_there(release, name)
    };
    let missing: Vec<&str> = ["erofs", "overlay", "fuse"].into_iter().filter(|name| !has(name)).collect();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if !missing.is_empty() {
        let found = format!("Linux {release} without {}", missing.join(", "));
        return Check::warning("kernel", found, "'lazyroot mount' needs them: 'modprobe', or a kernel that has them");
    }
    // Data-only lower layers of overlayfs came with 6.5.
    match version {
        (7.., _) | (6, 5..) => Check::good("kernel", format!("Linux {release} with erofs, overlay, fuse")),
        _ => Check::warning(
            "kernel",
            format!("Linux {release}"),
            "'lazyroot mount' needs Linux 6.5 or later; VMs do not",
        ),
    }
}

/// Whether a module could be loaded when it is needed.
#[cfg(target_os = "linux")]
fn module_is_there(release: &str, name: &str) -> bool {
    let dependencies = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    dependencies.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko"))))
}

/// What running VMs needs.
#[cfg(not(target_os = "linux"))]
fn machine(context: &Context) -> Vec<Check> {
    let mut checks = registry::detect(&context.home);
    checks.extend(podman_machine::detect());
    checks
}

/// Where images come from.
fn sources() -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match program("skopeo") {
        Some(path) => Check::good("registries", format!("{}", path.display())),
        None => Check::warning(
            "registries",
            "skopeo is not installed",
            "to import docker://REF: 'apt-get install skopeo', 'dnf install skopeo' or 'brew install skopeo'",
        ),
    });
    #[cfg(target_os = "linux")]
    checks.push(match (program("podman"), crate::store::podman_storage()) {
        (_, Some(storage)) => Check::good("podman", format!("images in {}", storage.display())),
        (Some(path), None) => Check::good("podman", format!("{}, without images", path.display())),
        (None, None) => Check::warning("podman", "not installed", "only containers-storage:NAME needs it"),
    });
    checks
}

/// The upstreams of `config.toml`, and the cache of what comes from them. All are asked at once: one that does not answer
/// takes its time over it.
fn upstreams(context: &Context) -> Vec<Check> {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(error) => {
            return vec![Check::bad("config", format!("{error:#}"), "nothing runs that reads it: mend that line")];
        }
    };
    let specs = configured(settings.upstreams);
    if specs.is_empty() {
        return vec![Check::good("upstreams", "none configured")];
    }
    let mut checks = vec![match RemoteImages::open(&context.home, &[], settings.cache.size) {
        Ok(_) => Check::good("cache", "can be written"),
        Err(error) => Check::bad("cache", format!("{error:#}"), "it is in the data folder: see 'home' above"),
    }];
    let queries: Vec<_> =
        specs.into_iter().map(|spec| std::thread::spawn(move || (check_upstream(&spec), spec))).collect();
    checks.extend(queries.into_iter().map(|query| match query.join() {
        Ok((Ok(()), spec)) => Check::good("upstream", format!("{} answers", spec.url)),
        Ok((Err(error), spec)) => {
            Check::warning("upstream", format!("{}: {error:#}", spec.url), upstream_advice(&spec))
        }
        Err(_) => Check::warning("upstream", "it could not be asked", "please report this"),
    }));
    checks
}

/// What makes an upstream answer.
fn upstream_advice(spec: &UpstreamSpec) -> String {
    match &spec.url {
        UpstreamAddress::Ssh { destination, .. } => {
            format!("'ssh {destination} {} --version' must print a version, without asking anything", spec.program)
        }
        UpstreamAddress::PodmanMachine(_) => {
            format!("'podman machine start', and '{}' must be there in the machine", spec.program)
        }
        UpstreamAddress::Command(_) => {
            "its output must be that of 'lazyroot serve --stdio' and nothing else: run it by hand".to_owned()
        }
        UpstreamAddress::Unix(path) => format!("start 'lazyroot serve --peer unix:{}'", path.display()),
        UpstreamAddress::Bucket(url) => {
            format!("endpoint and credentials come from the environment; 'lazyroot store push {url} IMAGE' fills it")
        }
    }
}

/// A program in PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}
