//! What a launch starts with, worked out before anything is started: nothing here opens a file, a socket or a process.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lazyroot_proto::boot::UPPER_DISK;
use lazyroot_proto::settings::{self, MAX_SETTINGS, Settings};

use super::Launch;
use crate::vm::hypervisor::backend::{self, GuestNeeds, Wants};
use crate::vm::hypervisor::machine::{Access, Disk, Hypervisor, Network, Share};
use crate::vm::instance::volume::Volume;
use crate::vm::instance::{Defaults, Record};
use crate::vm::kernel::bundle::Kernel;
use crate::vm::kernel::modules::Feature;

/// What an x86 kernel takes of its command line, in bytes (COMMAND_LINE_SIZE, less the final NUL); it cuts off the
/// rest without a word.
const MAX_CMDLINE: usize = 2047;

/// A launch as its hypervisor can give it.
pub(super) struct Plan {
    /// What boots.
    pub(super) kernel: Kernel,
    /// What the guest must have to run on the hypervisor.
    pub(super) needs: GuestNeeds,
    /// Its network.
    pub(super) network: Network,
    /// Folders of the host, each with the name that the guest mounts it by.
    pub(super) shares: Vec<Share>,
    /// Its disks.
    pub(super) disks: Vec<Disk>,
}

impl Plan {
    /// The plan of `launch` with this kernel, checked against what its backend can give.
    ///
    /// # Errors
    /// If the backend cannot give what is wanted.
    pub(super) fn of(launch: &Launch, kernel: Kernel) -> Result<Self> {
        let backend = launch.hypervisor.backend;
        let network = choose_network(launch, &kernel);
        let wants = Wants { kernel: &kernel, network, shares: !launch.volumes.is_empty(), disk: launch.disk.is_some() };
        backend::check(backend, wants)?;
        let disk = |path: &PathBuf| Disk { path: path.clone(), access: Access::ReadWrite, id: UPPER_DISK.into() };
        Ok(Self {
            needs: backend.guest_needs(kernel.bundle.arch),
            kernel,
            network,
            shares: shares(&launch.volumes),
            disks: launch.disk.iter().map(disk).collect(),
        })
    }

    /// What the guest needs of its kernel besides what every guest does.
    pub(super) fn features(&self) -> Vec<Feature> {
        let mut features = Vec::new();
        features.extend((self.network != Network::None).then_some(Feature::Network));
        features.extend((!self.shares.is_empty()).then_some(Feature::Share));
        features.extend((!self.disks.is_empty()).then_some(Feature::Disk));
        features
    }

    /// What the guest is told as it boots.
    pub(super) fn settings(&self, launch: &Launch, network: Option<settings::Network>) -> Result<Settings> {
        let files = |files: &[(String, Vec<u8>)]| {
            files.iter().map(|(name, content)| (name.clone().into_bytes(), content.clone())).collect()
        };
        let share = |(share, volume): (&Share, &Volume)| settings::Share {
            tag: share.tag.clone().into(),
            path: volume.guest.clone().into(),
            read_only: volume.read_only,
        };
        let settings = Settings {
            credentials: files(&launch.credentials),
            units: files(&launch.units),
            network,
            shares: self.shares.iter().zip(&launch.volumes).map(share).collect(),
        };
        let bytes = settings.encode().len();
        ensure!(bytes <= MAX_SETTINGS, "credentials and units have {bytes} bytes: more than {MAX_SETTINGS} do not fit");
        Ok(settings)
    }

    /// What others learn about the VM.
    pub(super) fn record(&self, launch: &Launch) -> Record {
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        let config = launch.image.config.clone().unwrap_or_default();
        Record {
            name: launch.name.clone().unwrap_or_default(),
            image: launch.image.id.to_string(),
            image_name: launch.image.name.clone(),
            command: launch.command.iter().flat_map(|exec| exec.argv.iter().map(text)).collect(),
            kernel: self.kernel.bundle.release.clone(),
            cpus: launch.cpus,
            memory_mib: launch.memory_mib,
            defaults: Defaults { env: config.env, workdir: config.working_dir, user: config.user },
            volumes: launch.volumes.clone(),
            persistent: launch.disk.is_some(),
            ..Record::default()
        }
    }

    /// The kernel's command line, with the words that suit the hypervisor.
    ///
    /// # Errors
    /// If it is too long.
    pub(super) fn cmdline(
        &self,
        hypervisor: &dyn Hypervisor,
        launch: &Launch,
        settings: &Settings,
        name: &str,
    ) -> Result<String> {
        let mode = if launch.command.is_some() { "agent" } else { "init" };
        let mut words = vec![
            format!("console={}", self.needs.console),
            // A guest that panics is over: reboot at once, which the hypervisor turns into an exit.
            "panic=-1".to_owned(),
            hypervisor.cmdline(),
            format!("lazyroot.manifest={}", launch.image.id),
            format!("lazyroot.index={}", launch.image.index.id()),
            format!("lazyroot.port={}", hypervisor.vsock_port()),
            format!("lazyroot.mode={mode}"),
            format!("lazyroot.hostname={name}"),
        ];
        if *settings != Settings::default() {
            words.push("lazyroot.settings".to_owned());
        }
        if launch.disk.is_some() {
            words.push("lazyroot.upper=disk".to_owned());
        }
        if launch.command.is_none() {
            // systemd would take it from the image, where all VMs find the same.
            words.push(format!("systemd.hostname={name}"));
        }
        words.extend(launch.append.iter().cloned());
        let line = words.join(" ");
        ensure!(
            line.len() <= MAX_CMDLINE,
            "the kernel command line is longer than {MAX_CMDLINE} bytes: shorten --append"
        );
        Ok(line)
    }
}

/// The network that was asked for; else the usual one, if the kernel can.
fn choose_network(launch: &Launch, kernel: &Kernel) -> Network {
    match launch.network {
        Some(network) => network,
        None if kernel.has(Feature::Network) => Network::User,
        None => {
            let release = &kernel.bundle.release;
            tracing::warn!("kernel {release} has no modules for a network, so there is none: import the kernel again");
            Network::None
        }
    }
}

/// Each folder with the name that the guest mounts it by.
fn shares(volumes: &[Volume]) -> Vec<Share> {
    let share = |(number, volume): (usize, &Volume)| Share { dir: volume.host.clone(), tag: format!("volume{number}") };
    volumes.iter().enumerate().map(share).collect()
}
