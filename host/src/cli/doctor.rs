//! `lazyroot doctor`: whether this machine has what lazyroot needs, and how to get what it has not.

#[cfg(target_os = "linux")]
use std::fs::{self, OpenOptions};
#[cfg(target_os = "linux")]
use std::path::Path;
use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::process::Command;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::output::{Format, output};
use crate::cli::upstreams::configured;
use crate::human::size;
use crate::settings::Settings;
use crate::store::{RemoteImages, Store, UpstreamAddress, UpstreamSpec, check_upstream};
use crate::text::printable;
use crate::vm;
use crate::vm::hypervisor::checks::{Check, Weight};
#[cfg(target_os = "linux")]
use crate::vm::hypervisor::qemu::accelerator::{self, Trials};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::Kernels;

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

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Good,
    Warning,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// Of what.
    name: &'static str,
    health: Health,
    /// What was found.
    found: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

fn good(name: &'static str, found: impl Into<String>) -> Finding {
    Finding { name, health: Health::Good, found: found.into(), mend: None }
}

fn warning(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { name, health: Health::Warning, found: found.into(), mend: Some(mend.into()) }
}

fn bad(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { name, health: Health::Bad, found: found.into(), mend: Some(mend.into()) }
}

/// Looks at everything; fails at nothing.
pub fn run(args: &DoctorArgs, context: &Context) -> Result<ExitCode> {
    let mut findings = vec![good("home", format!("{}", context.home.data().display()))];
    findings.extend(store(context));
    findings.extend(machine(context));
    findings.extend(guest(context));
    findings.extend(sources());
    findings.extend(upstreams(context));
    let sick = findings.iter().any(|finding| finding.health == Health::Bad);
    output(|out| {
        if args.format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &findings).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        for finding in &findings {
            let sign = match finding.health {
                Health::Good => "ok",
                Health::Warning => "warning",
                Health::Bad => "BAD",
            };
            writeln!(out, "{sign:8} {:12} {}", finding.name, printable(&finding.found))?;
            if let Some(mend) = &finding.mend {
                writeln!(out, "{:8} {:12} -> {mend}", "", "")?;
            }
        }
        Ok(())
    })?;
    Ok(if sick { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The store: whether it opens, can be written, and has room.
fn store(context: &Context) -> Vec<Finding> {
    let store = match Store::open(&context.home, context.store.as_deref()) {
        Ok(store) => store,
        Err(error) => return vec![bad("store", format!("{error:#}"), "see the message")],
    };
    let mut findings = Vec::new();
    let path = store.path();
    let shown = path.display();
    let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    findings.push(match (store.images(), writable) {
        (Err(error), _) => bad("store", format!("{error:#}"), "lazyroot store verify"),
        (Ok(images), Ok(())) => good("store", format!("{shown}: {} images", images.len())),
        (Ok(_), Err(error)) => warning(
            "store",
            format!("{shown} can be read but not written: {error}"),
            "to import, use a store of your own: --store DIR, or run lazyroot as its owner",
        ),
    });
    if let Ok(stat) = rustix::fs::statvfs(path) {
        let free = stat.f_bavail * stat.f_frsize;
        let found = format!("{} free at the store", size(free));
        findings.push(match free {
            LITTLE_SPACE.. => good("disk", found),
            _ => warning("disk", found, "'lazyroot store gc' frees what no image needs; or use another --store"),
        });
    }
    findings
}

/// What boots in every VM.
fn guest(context: &Context) -> Vec<Finding> {
    let guest_init = match vm::kernel::initramfs::guest_init_path(Arch::HOST) {
        Ok(path) => good("guest-init", path.display().to_string()),
        Err(error) => bad("guest-init", "not found", format!("{error:#}")),
    };
    let kernels = match Kernels::open(&context.home).and_then(|kernels| kernels.list()) {
        Ok(kernels) if !kernels.is_empty() => good("kernels", format!("{} imported", kernels.len())),
        Ok(_) => warning(
            "kernels",
            "none imported",
            "images that bring no kernel need one: 'lazyroot kernel import linux-image-....deb'",
        ),
        Err(error) => bad("kernels", format!("{error:#}"), "see the message"),
    };
    vec![guest_init, kernels]
}

/// What running VMs and mounting needs.
#[cfg(target_os = "linux")]
fn machine(context: &Context) -> Vec<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = vec![kernel_findings(&release)];
    findings.push(match vm::hypervisor::qemu::program(Arch::HOST) {
        Err(error) => bad("hypervisor", "QEMU is not installed", format!("{error:#}")),
        Ok(program) => {
            let output = Command::new(&program).arg("--version").output();
            let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let version = version.lines().next().unwrap_or("of unknown version").to_owned();
            // Emulated kernels crash at random under 7.2.
            match version.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok()) {
                Some(8..) => good("hypervisor", format!("{} {version}", program.display())),
                _ => warning(
                    "hypervisor",
                    format!("{} {version}", program.display()),
                    "QEMU 8 or later is reliable without KVM too: install it from your distribution's backports",
                ),
            }
        }
    });
    findings.push(kvm(context));
    findings.push(match OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(_) => good("vsock", "/dev/vhost-vsock"),
        Err(error) => match vm::hypervisor::qemu::vhost_device_vsock(&context.home) {
            Ok(program) => good("vsock", format!("{} (/dev/vhost-vsock: {error})", program.display())),
            Err(missing) => bad("vsock", format!("/dev/vhost-vsock: {error}"), format!("{missing:#}")),
        },
    });
    findings.push(device("fuse", Path::new("/dev/fuse"), "'lazyroot mount' needs it: 'modprobe fuse', and root"));
    findings
}

/// KVM: whether its device opens, and whether it ran what was tried.
#[cfg(target_os = "linux")]
fn kvm(context: &Context) -> Finding {
    let opened = device(
        "kvm",
        Path::new("/dev/kvm"),
        "VMs run, slowly, on an emulated processor; join the group kvm, or turn on virtualisation in the firmware",
    );
    let trials = vm::hypervisor::qemu::program(Arch::HOST)
        .map(|program| accelerator::trials(&context.home, &program))
        .unwrap_or_default();
    kvm_after(opened, trials)
}

/// What opening the device and the remembered trial boots say together.
#[cfg(target_os = "linux")]
fn kvm_after(opened: Finding, trials: Trials) -> Finding {
    match (opened.health, trials) {
        (Health::Good, Trials { failed: 0, .. }) | (Health::Warning | Health::Bad, _) => opened,
        (Health::Good, Trials { succeeded, failed }) => warning(
            "kvm",
            format!("{} opens, but KVM did not boot {failed} of {} kernels tried", opened.found, succeeded + failed),
            "VMs with such a kernel run, slowly, on an emulated processor; '--hypervisor qemu:kvm' uses KVM all the same",
        ),
    }
}

/// The kernel of this machine, as far as `lazyroot mount` needs it.
#[cfg(target_os = "linux")]
fn kernel_findings(release: &str) -> Finding {
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
        return warning("kernel", found, "'lazyroot mount' needs them: 'modprobe', or a kernel that has them");
    }
    // Data-only lower layers of overlayfs came with 6.5.
    match version {
        (7.., _) | (6, 5..) => good("kernel", format!("Linux {release} with erofs, overlay, fuse")),
        _ => warning("kernel", format!("Linux {release}"), "'lazyroot mount' needs Linux 6.5 or later; VMs do not"),
    }
}

/// Whether a module could be loaded when it is needed.
#[cfg(target_os = "linux")]
fn module_is_there(release: &str, name: &str) -> bool {
    let dependencies = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    dependencies.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko"))))
}

#[cfg(target_os = "linux")]
fn device(name: &'static str, path: &Path, mend: &str) -> Finding {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => good(name, path.display().to_string()),
        Err(error) => warning(name, format!("{}: {error}", path.display()), mend),
    }
}

#[cfg(not(target_os = "linux"))]
fn machine(_context: &Context) -> Vec<Finding> {
    vm::hypervisor::checks::macos().into_iter().map(Finding::from).collect()
}

impl From<Check> for Finding {
    /// A check's complaint says what is wrong and, after a colon, what to do.
    fn from(check: Check) -> Self {
        match (check.outcome, check.weight) {
            (Ok(found), _) => good(check.name, found),
            (Err(words), weight) => {
                let (found, mend) = words.split_once(": ").unwrap_or((&words, "see the message"));
                match weight {
                    Weight::Needed => bad(check.name, found, mend),
                    Weight::Useful => warning(check.name, found, mend),
                }
            }
        }
    }
}

/// Where images come from.
fn sources() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match program("skopeo") {
        Some(path) => good("registries", format!("{}", path.display())),
        None => warning(
            "registries",
            "skopeo is not installed",
            "to import docker://REF: 'apt-get install skopeo', 'dnf install skopeo' or 'brew install skopeo'",
        ),
    });
    #[cfg(target_os = "linux")]
    findings.push(match (program("podman"), crate::store::podman_storage()) {
        (_, Some(storage)) => good("podman", format!("images in {}", storage.display())),
        (Some(path), None) => good("podman", format!("{}, without images", path.display())),
        (None, None) => warning("podman", "not installed", "only containers-storage:NAME needs it"),
    });
    findings
}

/// The upstreams of `config.toml`, and the cache of what comes from them. All are asked at once: one that does not answer
/// takes its time over it.
fn upstreams(context: &Context) -> Vec<Finding> {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(error) => return vec![bad("config", format!("{error:#}"), "nothing runs that reads it: mend that line")],
    };
    let specs = configured(settings.upstreams);
    if specs.is_empty() {
        return vec![good("upstreams", "none configured")];
    }
    let mut findings = vec![match RemoteImages::open(&context.home, &[], settings.cache.size) {
        Ok(_) => good("cache", "can be written"),
        Err(error) => bad("cache", format!("{error:#}"), "it is in the data folder: see 'home' above"),
    }];
    let asked: Vec<_> =
        specs.into_iter().map(|spec| std::thread::spawn(move || (check_upstream(&spec), spec))).collect();
    findings.extend(asked.into_iter().map(|asked| match asked.join() {
        Ok((Ok(()), spec)) => good("upstream", format!("{} answers", spec.url)),
        Ok((Err(error), spec)) => warning("upstream", format!("{}: {error:#}", spec.url), upstream_advice(&spec)),
        Err(_) => warning("upstream", "it could not be asked", "please report this"),
    }));
    findings
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_of_a_mac_is_a_finding_with_the_way_out() {
        for check in vm::hypervisor::checks::macos() {
            let (weight, missing) = (check.weight, check.outcome.is_err());
            let finding = Finding::from(check);
            let health = match (missing, weight) {
                (false, _) => Health::Good,
                (true, Weight::Needed) => Health::Bad,
                (true, Weight::Useful) => Health::Warning,
            };
            assert_eq!((finding.health, finding.mend.is_some()), (health, missing), "{finding:?}");
        }
    }
    #[test]
    #[cfg(target_os = "linux")]
    fn kvm_is_not_well_where_a_trial_boot_failed() {
        let opened = || good("kvm", "/dev/kvm");
        let after = |succeeded, failed| kvm_after(opened(), Trials { succeeded, failed });
        assert_eq!(after(0, 0).health, Health::Good);
        assert_eq!(after(2, 0).health, Health::Good);
        assert_eq!((after(0, 1).health, after(1, 1).health), (Health::Warning, Health::Warning));
        assert!(after(1, 2).found.contains("did not boot 2 of 3 kernels"));
        let closed = warning("kvm", "/dev/kvm: permission denied", "join the group");
        assert!(kvm_after(closed, Trials { succeeded: 0, failed: 1 }).found.contains("permission denied"));
    }
}
