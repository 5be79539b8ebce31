//! vfkit's command line, as its [usage page](https://github.com/crc-org/vfkit/blob/main/doc/usage.md) has it.
//!
//! vfkit splits `--device` at every comma, with no way to quote one, and `--bootloader` at every comma outside of double
//! quotes. It reads a socket's path as the path of a URL. What cannot be written so that vfkit understands it is
//! refused here, by name.

use std::path::{Path, PathBuf};

use crate::serve::MAX_SOCKET_PATH;
use crate::vm::hypervisor::console::Console;
use crate::vm::hypervisor::machine::{Access, MachineSpec, Network};

/// The one MAC address to which gvproxy leases the guest's address.
pub const GVPROXY_MAC: &str = "5a:94:ef:e4:0c:ee";

/// What vfkit binds beside gvproxy's socket: `vfkit-PID-RANDOM.sock`, with five and four hexadecimal digits; its length in bytes.
pub const VFKIT_OWN_SOCKET: usize = "vfkit-fffff-ffff.sock".len();

/// Characters that end or change the path in a URL.
const URL_SYNTAX: &[char] = &['%', '?', '#'];

/// Why a machine cannot be said in vfkit's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// A path that is not text.
    #[error("vfkit cannot take the path {}, which is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    /// A relative path, which vfkit's URLs cannot hold.
    #[error("vfkit needs the whole path of {}", .0.display())]
    Relative(PathBuf),
    /// A character that vfkit would take for its own.
    #[error(
        "vfkit cannot take the {what} {value}: it has {character:?}, which vfkit's command line gives a meaning; use \
         another path (LAZYROOT_HOME chooses lazyroot's own)"
    )]
    Character {
        /// What it was for.
        what: &'static str,
        /// All of it.
        value: String,
        /// The first such character.
        character: char,
    },
    /// A quote in the kernel command line.
    #[error("vfkit cannot take a double quote in the kernel command line: leave it out of --append")]
    Quote,
    /// A socket's address that macOS cannot hold.
    #[error(
        "the socket path {} has {} bytes, and macOS takes {most}: choose a shorter LAZYROOT_HOME",
        .path.display(),
        .path.as_os_str().len()
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// How many bytes it may have.
        most: usize,
    },
}

type Result<T> = std::result::Result<T, ArgumentError>;

/// The sockets of a machine beside that of its vsock port.
pub struct Sockets<'a> {
    /// The server's, where vfkit brings the guest's connections.
    pub vsock: &'a Path,
    /// Where vfkit serves its API.
    pub rest: &'a Path,
    /// gvproxy's; needed for [`Network::User`].
    pub network: &'a Path,
}

/// vfkit's arguments for a machine.
///
/// # Errors
/// If something cannot be expressed.
pub fn arguments(spec: &MachineSpec, sockets: &Sockets<'_>) -> Result<Vec<String>> {
    let mut arguments = vec![
        "--cpus".to_owned(),
        spec.cpus.to_string(),
        "--memory".to_owned(),
        spec.memory_mib.to_string(),
        "--restful-uri".to_owned(),
        format!("unix://{}", socket("socket", sockets.rest, 0)?),
        "--bootloader".to_owned(),
        bootloader(spec)?,
    ];
    let mut device = |value: String| arguments.extend(["--device".to_owned(), value]);
    device("virtio-rng".to_owned());
    device("virtio-balloon".to_owned());
    device(match &spec.console {
        Console::File(path) => format!("virtio-serial,logFilePath={}", value("console log", path)?),
        Console::Stdio => "virtio-serial,stdio".to_owned(),
        Console::Pty => "virtio-serial,pty".to_owned(),
    });
    let vsock = socket("socket", sockets.vsock, 0)?;
    device(format!("virtio-vsock,port={},socketURL={vsock},listen", spec.vsock_port));
    for disk in &spec.disks {
        let path = value("disk", &disk.path)?;
        let readonly = if disk.access == Access::ReadOnly { ",readonly" } else { "" };
        device(format!("virtio-blk,path={path}{readonly},deviceId={}", word("disk's id", &disk.id)?));
    }
    for share in &spec.shares {
        let dir = value("shared folder", &share.dir)?;
        device(format!("virtio-fs,sharedDir={dir},mountTag={}", word("share's tag", &share.tag)?));
    }
    match spec.network {
        Network::None => (),
        Network::Nat => device("virtio-net,nat".to_owned()),
        Network::User => {
            let name = sockets.network.file_name().map_or(0, |name| name.len());
            let path = socket("socket", sockets.network, VFKIT_OWN_SOCKET.saturating_sub(name))?;
            device(format!("virtio-net,unixSocketPath={path},mac={GVPROXY_MAC}"));
        }
    }
    Ok(arguments)
}

/// The whole of `kernel=` and of `initrd=` could be quoted to hold commas, but the usage page says so of `cmdline=` only.
fn bootloader(spec: &MachineSpec) -> Result<String> {
    let kernel = value("kernel", &spec.kernel)?;
    let initrd = value("initramfs", &spec.initramfs)?;
    if spec.cmdline.contains('"') {
        return Err(ArgumentError::Quote);
    }
    Ok(format!("linux,kernel={kernel},initrd={initrd},cmdline=\"{}\"", spec.cmdline))
}

/// A path as the value of an option.
fn value<'a>(what: &'static str, path: &'a Path) -> Result<&'a str> {
    let text = path.to_str().ok_or_else(|| ArgumentError::NotUtf8(path.to_owned()))?;
    if !path.is_absolute() {
        return Err(ArgumentError::Relative(path.to_owned()));
    }
    word(what, text)
}

fn word<'a>(what: &'static str, text: &'a str) -> Result<&'a str> {
    // A quote alone would be fine in --device; in --bootloader it opens a part in which commas count for nothing.
    refuse(what, text, |character| character == ',' || character == '"' || character.is_control())
}

fn refuse<'a>(what: &'static str, text: &'a str, bad: impl Fn(char) -> bool) -> Result<&'a str> {
    match text.chars().find(|character| bad(*character)) {
        Some(character) => Err(ArgumentError::Character { what, value: text.escape_debug().to_string(), character }),
        None => Ok(text),
    }
}

/// A socket's path, with so many bytes to spare for others in its folder.
fn socket<'a>(what: &'static str, path: &'a Path, spare: usize) -> Result<&'a str> {
    let text = refuse(what, value(what, path)?, |character| URL_SYNTAX.contains(&character))?;
    let most = MAX_SOCKET_PATH - spare;
    if text.len() > most {
        return Err(ArgumentError::SocketPath { path: path.to_owned(), most });
    }
    Ok(text)
}
