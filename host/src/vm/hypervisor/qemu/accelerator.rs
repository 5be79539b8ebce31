//! KVM where it works, TCG elsewhere, found out by trying.
//!
//! A `/dev/kvm` that opens proves little: nested or restricted hosts have one on which a stock kernel hangs. So
//! the very kernel and initramfs are booted under KVM once, with an instruction to say so and power off; whether
//! they did within a few seconds is remembered.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use lazyroot_proto::boot::PROBE_MARKER;

use super::program;
use crate::complain::complain;
use crate::home::Home;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::Kernel;
use crate::vm::process::end_with_parent;

/// A stock kernel reaches init within one second on a machine where KVM works.
const PROBE_DEADLINE: Duration = Duration::from_secs(4);

/// The folder of what is remembered, in that for data that lasts.
const CACHE: &str = "cache";

/// What is remembered of probes.
const FILE: &str = "accelerator.json";

/// How a guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the CPU.
    Kvm,
    /// By QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// The one that QEMU calls so.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg].into_iter().find(|accelerator| accelerator.name() == name)
    }

    /// QEMU's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The CPU model that suits it.
    pub fn cpu(self, arch: Arch) -> &'static str {
        match (self, arch) {
            (Self::Kvm, _) => "host",
            // The translator runs `rep movsb` and `rep stosb` byte by byte. Where a CPU calls them fast, Linux and glibc copy with
            // nothing else: a boot takes a seventh longer. It calls a function for each SHA instruction, which takes five times
            // as long as hashing with any others; and a block of its translation ends wherever the kernel lets itself
            // into a program's memory and out again, as it does with SMAP.
            (Self::Tcg, Arch::X86_64) => "max,-erms,-fsrm,-sha-ni,-smap",
            // `max` computes pointer authentication in software: a slower boot, and nothing that a guest needs.
            (Self::Tcg, Arch::Aarch64) => "cortex-a57",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether KVM works, by what was probed: kernel, QEMU and the host's kernel.
type ProbeResults = BTreeMap<String, bool>;

/// The accelerator for `kernel` on this machine: the one asked for, else KVM where it works.
///
/// # Errors
/// If KVM was asked for and cannot be used, or the probe cannot be started.
pub async fn choose(
    home: &Home,
    kernel: &Kernel,
    initramfs: &Path,
    requested: Option<Accelerator>,
) -> Result<Accelerator> {
    let arch = kernel.bundle.arch;
    if arch != Arch::HOST {
        match requested {
            None | Some(Accelerator::Tcg) => return Ok(Accelerator::Tcg),
            Some(Accelerator::Kvm) => bail!(
                "KVM runs guests of this machine's architecture, {}: kernel {} is for {arch}; use --hypervisor qemu:tcg",
                Arch::HOST,
                kernel.bundle.release
            ),
        }
    }
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    match (requested, kvm) {
        (Some(Accelerator::Tcg), _) | (None, Err(_)) => return Ok(Accelerator::Tcg),
        (Some(Accelerator::Kvm), Ok(_)) => return Ok(Accelerator::Kvm),
        (Some(Accelerator::Kvm), Err(error)) => {
            bail!("cannot use KVM: /dev/kvm: {error}; are you in the group kvm, and is virtualisation on?")
        }
        (None, Ok(_)) => (),
    }
    let program = program::program(arch)?;
    let file = home.data_dir(CACHE)?.join(FILE);
    let key = format!("kernel {} {}", kernel.bundle.id, here(&program)?);
    if let Some(works) = recall(&file).get(&key) {
        return Ok(accelerator(*works));
    }
    let works = probe(&program, kernel, initramfs).await?;
    if !works {
        complain("KVM does not run this kernel here, using TCG (slower); remembered, '--hypervisor qemu:kvm' insists");
    }
    // Only saves time: a cache that cannot be written costs the next launch a probe.
    if let Err(error) = remember(&file, key, works) {
        tracing::debug!("cannot remember that KVM was probed: {error:#}");
    }
    Ok(accelerator(works))
}

/// The end of the keys of what was probed on this machine as it is now.
fn here(program: &Path) -> Result<String> {
    let host = rustix::system::uname();
    let modified = fs::metadata(program)?.modified()?;
    Ok(format!("on {}, {} {modified:?}", host.release().to_string_lossy(), program.display()))
}

/// How the trial boots ended that are remembered of this machine as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trials {
    /// Kernels that KVM ran.
    pub succeeded: usize,
    /// Kernels that it did not.
    pub failed: usize,
}

/// The trial boots under this QEMU that are remembered. Boots nothing.
pub fn trials(home: &Home, program: &Path) -> Trials {
    let remembered = recall(&home.data().join(CACHE).join(FILE));
    here(program).map(|here| count(&remembered, &here)).unwrap_or_default()
}

fn count(probed: &ProbeResults, here: &str) -> Trials {
    let answers = || probed.iter().filter(|(key, _)| key.ends_with(here)).map(|(_, works)| *works);
    Trials { succeeded: answers().filter(|works| *works).count(), failed: answers().filter(|works| !works).count() }
}

/// What is remembered; nothing if the file is damaged or not there.
fn recall(file: &Path) -> ProbeResults {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Adds an answer, so that a launch at the same time reads the old file or the whole new one.
fn remember(file: &Path, key: String, works: bool) -> Result<()> {
    let mut probed = recall(file);
    probed.insert(key, works);
    let mut fresh = tempfile::NamedTempFile::new_in(file.parent().expect("the file is in the cache's folder"))?;
    fresh.write_all(&serde_json::to_vec(&probed)?)?;
    fresh.persist(file)?;
    Ok(())
}

fn accelerator(kvm_works: bool) -> Accelerator {
    if kvm_works { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// Boots under KVM; whether guest-init said its marker in time.
async fn probe(program: &Path, kernel: &Kernel, initramfs: &Path) -> Result<bool> {
    // Without a name: nothing is left of it however we end.
    let console = tempfile::tempfile()?;
    let arch = kernel.bundle.arch;
    let mut command = tokio::process::Command::new(program);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-M",
            program::machine(arch),
            "-m",
            "256M",
        ])
        .args(["-accel", "kvm", "-cpu", "host", "-serial", "stdio", "-append"])
        .arg(format!("console={} panic=-1 lazyroot.probe", program::console(arch)))
        .arg("-kernel")
        .arg(kernel.boot_file())
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(Stdio::null())
        .kill_on_drop(true);
    end_with_parent(command.as_std_mut());
    let mut qemu = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let deadline = Instant::now() + PROBE_DEADLINE;
    let works = loop {
        let mut said = vec![0; console.metadata()?.len() as usize];
        // Not through the file's position, which QEMU's writing shares.
        console.read_exact_at(&mut said, 0)?;
        if said.windows(PROBE_MARKER.len()).any(|window| window == PROBE_MARKER.as_bytes()) {
            break true;
        }
        // Ended without the marker: QEMU could not use KVM, or the kernel could not go on.
        if Instant::now() > deadline || qemu.try_wait()?.is_some() {
            break false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let _ = qemu.kill().await;
    Ok(works)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_that_was_probed_is_remembered_and_damage_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("accelerator.json");
        remember(&file, "a".into(), true).unwrap();
        remember(&file, "b".into(), false).unwrap();
        assert_eq!(recall(&file), ProbeResults::from([("a".into(), true), ("b".into(), false)]));
        fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file), ProbeResults::new());
    }

    #[test]
    fn trial_boots_on_another_kernel_or_qemu_do_not_count() {
        let key = |kernel: &str, here: &str| format!("kernel {kernel} {here}");
        let probed = ProbeResults::from([
            (key("one", "on 6.12, /usr/bin/qemu 1"), true),
            (key("two", "on 6.12, /usr/bin/qemu 1"), false),
            (key("one", "on 6.1, /usr/bin/qemu 1"), false),
            (key("one", "on 6.12, /usr/bin/qemu 2"), false),
        ]);
        assert_eq!(count(&probed, "on 6.12, /usr/bin/qemu 1"), Trials { succeeded: 1, failed: 1 });
        assert_eq!(count(&probed, "on 6.12, /usr/bin/other 1"), Trials::default());
    }
}
