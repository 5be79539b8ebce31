//! The host's settings for this guest: fetched before anything of the image runs, and put in their places.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use lazyroot_proto::frame::{HostMessage, Role};
use lazyroot_proto::settings::{Settings, Share};
use rustix::mount::{MountFlags, mount};

use crate::agent::mode::Mode;
use crate::init::network;
use crate::init::notify::{self, Notify};
use crate::link::{Address, dial_patiently, introduce};

/// Asks the host for this guest's settings.
///
/// # Errors
/// If it does not answer, or not as expected.
pub fn fetch(address: &Address) -> Result<Settings> {
    let ask = || -> io::Result<Settings> {
        let (header, payload) = introduce(dial_patiently(address)?, Role::Settings)?.read_frame()?;
        match HostMessage::decode(header.kind, &payload).map_err(io::Error::other)? {
            HostMessage::Settings(settings) => Settings::decode(settings).map_err(io::Error::other),
            other => Err(io::Error::other(format!("unexpected on a settings connection: {other:?}"))),
        }
    };
    ask().context("cannot get this guest's settings")
}

/// Puts in place what the image's init reads, and sets the network up; the image is mounted at `sysroot` and not yet
/// the root.
///
/// # Errors
/// If anything cannot be done: a guest that is not as it was asked for must not start.
pub fn apply(settings: &Settings, sysroot: &Path, mode: Mode) -> Result<()> {
    for (name, content) in &settings.credentials {
        notify::write_credential(file_name(name)?, content)?;
    }
    if mode == Mode::Init {
        notify::write_credential(Path::new(notify::CREDENTIAL), Notify::address().as_bytes())?;
    }
    for (name, content) in &settings.units {
        write_unit(file_name(name)?, content)?;
    }
    if let Some(net) = &settings.network {
        network::configure(net)?;
        network::write_resolv_conf(sysroot, net, mode == Mode::Init)?;
        let [a, b, c, d] = net.dns;
        notify::write_credential(Path::new("network.dns"), format!("{a}.{b}.{c}.{d}").as_bytes())?;
    }
    settings.shares.iter().try_for_each(|share| mount_share(share, sysroot))
}

/// A name that stays in its folder.
fn file_name(name: &[u8]) -> Result<&Path> {
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    match (path.components().next(), path.components().count()) {
        (Some(Component::Normal(_)), 1) => Ok(path),
        _ => bail!("'{}' is no file name", path.display()),
    }
}

/// Writes a unit where systemd looks for those of this boot (systemd.unit(5)), and has it started with the system.
fn write_unit(name: &Path, content: &[u8]) -> Result<()> {
    let units = Path::new("/run/systemd/system");
    let wants = units.join("multi-user.target.wants");
    let write = || {
        fs::create_dir_all(&wants)?;
        fs::write(units.join(name), content)?;
        std::os::unix::fs::symlink(Path::new("..").join(name), wants.join(name))
    };
    write().with_context(|| format!("cannot write the unit {}", name.display()))
}

fn mount_share(share: &Share, sysroot: &Path) -> Result<()> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&share.path));
    let inside: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let target = sysroot.join(inside);
    let tag = CString::new(share.tag.clone())?;
    fs::create_dir_all(&target).with_context(|| format!("cannot make the folder {}", path.display()))?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    flags.set(MountFlags::RDONLY, share.read_only);
    mount(tag.as_c_str(), &target, "virtiofs", flags, c"")
        .with_context(|| format!("cannot mount the host's folder at {} (virtiofs)", path.display()))
}

/// Gives the machine an id of its own (machine-id(5)) where the image brings one, which all its machines would share. An
/// image without one makes its own at its first boot, and knows by that that it is the first.
///
/// An empty file stays empty. systemd then makes an id too, but has no first boot. Whoever made the image chose that: a
/// first boot resets which units are enabled (`preset-all`), and systemd-firstboot may ask questions on the console.
///
/// # Errors
/// If it cannot be written.
pub fn write_machine_id(sysroot: &Path) -> Result<()> {
    let path = sysroot.join("etc/machine-id");
    let baked = fs::read_to_string(&path).unwrap_or_default();
    if baked.trim_end().len() != 32 || !baked.trim_end().bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(());
    }
    let write = || {
        let mut bytes = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(&path, id + "\n")
    };
    write().context("cannot write /etc/machine-id")
}

/// Names the machine in the image's own file, for inits that take the name from there (systemd is told on the kernel
/// command line). Best effort: an image may have no such file, or read it elsewhere.
pub fn write_hostname(sysroot: &Path, name: &str) {
    let path = sysroot.join("etc/hostname");
    let systemd = ["sbin/init", "usr/sbin/init"].iter().any(|init| {
        fs::read_link(sysroot.join(init)).is_ok_and(|target| target.as_os_str().as_bytes().ends_with(b"systemd"))
    });
    if !systemd && path.is_file() {
        let _ = fs::write(path, format!("{name}\n"));
    }
}
