//! vfkit's command line, as its [usage page](https://github.com/crc-org/vfkit/blob/main/doc/usage.md) has it.
//!
//! vfkit splits `--device` at every comma, with no way to quote one, and `--bootloader` at every comma outside of double
//! quotes. It reads a socket's path as the path of a URL. What cannot be written so that vfkit understands it is
//! refused here, by name.

use std::path::{Path, PathBuf};

use crate::serve::MAX_SOCKET_PATH;
use crate::vm::hypervisor::{Access, Console, MachineSpec, Network};

/// The one MAC address to which gvproxy leases the guest's address.
const GVPROXY_MAC: &str = "5a:94:ef:e4:0c:ee";

/// What vfkit binds beside gvproxy's socket: `vfkit-PID-RANDOM.sock`, with five and four hexadecimal digits.
const VFKIT_OWN_SOCKET: usize = "vfkit-fffff-ffff.sock".len();

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::grammar::{self, Bootloader, Device, Grammar};
    use super::*;
    use crate::vm::hypervisor::{Disk, Share};

    fn spec() -> MachineSpec {
        MachineSpec {
            name: "vm".into(),
            cpus: 2,
            memory_mib: 1024,
            kernel: "/k/vmlinux".into(),
            initramfs: "/k/initramfs".into(),
            cmdline: "console=hvc0 a=b,c".into(),
            dir: "/d".into(),
            console: Console::File("/d/console.log".into()),
            vsock_port: 1024,
            disks: Vec::new(),
            shares: Vec::new(),
            network: Network::None,
        }
    }

    const SOCKETS: [&str; 3] = ["/d/v_1024", "/d/rest.sock", "/d/net.sock"];

    fn with_sockets(spec: &MachineSpec, [vsock, rest, network]: [&str; 3]) -> Result<Vec<String>> {
        let sockets = Sockets { vsock: vsock.as_ref(), rest: rest.as_ref(), network: network.as_ref() };
        arguments(spec, &sockets)
    }

    /// Mostly harmless paths, and all that vfkit could stumble over.
    fn path() -> impl Strategy<Value = PathBuf> {
        let part = prop_oneof![4 => "[a-zA-Z0-9 ._@:+=-]{1,12}", 1 => "[,\"'%?#\\\\ é\n]{1,3}"];
        proptest::collection::vec(part, 1..6).prop_map(|parts| PathBuf::from(format!("/{}", parts.join("/"))))
    }

    prop_compose! {
        fn machine()(
            (cpus, memory_mib, vsock_port) in (1..256u32, 128..1_000_000u32, 1..u32::MAX),
            (kernel, initramfs, log) in (path(), path(), path()),
            cmdline in "[ -~]{0,80}",
            console in 0..3usize,
            disks in proptest::collection::vec((path(), any::<bool>(), "[a-z0-9,]{1,20}"), 0..3),
            shares in proptest::collection::vec((path(), "[a-z,]{1,10}"), 0..3),
            network in prop_oneof![Just(Network::None), Just(Network::Nat), Just(Network::User)],
        ) -> MachineSpec {
            let console = [Console::File(log), Console::Stdio, Console::Pty][console].clone();
            let access = |read_only| if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let disks = disks.into_iter().map(|(path, ro, id)| Disk { path, access: access(ro), id }).collect();
            let shares = shares.into_iter().map(|(dir, tag)| Share { dir, tag }).collect();
            let name = "vm".to_owned();
            let dir = PathBuf::from("/d");
            MachineSpec {
                name, cpus, memory_mib, kernel, initramfs, cmdline, dir, console, vsock_port, disks, shares, network,
            }
        }
    }

    /// What the usage page's grammar must find in the arguments for `spec`.
    fn expected(spec: &MachineSpec, [vsock, rest, network]: [&str; 3]) -> Grammar {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let serial = match &spec.console {
            Console::File(path) => Device::SerialLog(text(path)),
            Console::Stdio => Device::SerialStdio,
            Console::Pty => Device::SerialPty,
        };
        let vsock = Device::Vsock { port: spec.vsock_port, socket: vsock.into(), listen: true };
        let mut devices = vec![Device::Rng, Device::Balloon, serial, vsock];
        devices.extend(spec.disks.iter().map(|disk| Device::Blk {
            path: text(&disk.path),
            readonly: disk.access == Access::ReadOnly,
            id: Some(disk.id.clone()),
        }));
        let shares = spec.shares.iter();
        devices.extend(shares.map(|share| Device::Fs { dir: text(&share.dir), tag: Some(share.tag.clone()) }));
        match spec.network {
            Network::None => (),
            Network::Nat => devices.push(Device::NetNat),
            Network::User => devices.push(Device::NetSocket { path: network.into(), mac: Some(GVPROXY_MAC.into()) }),
        }
        let bootloader =
            Bootloader { kernel: text(&spec.kernel), initrd: text(&spec.initramfs), cmdline: spec.cmdline.clone() };
        Grammar {
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            restful: Some(rest.to_owned()),
            bootloader: Some(bootloader),
            devices,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever is asked for, vfkit reads it as it was meant, or is not asked at all.
        #[test]
        fn every_machine_is_understood_or_refused(spec in machine(), sockets in [path(), path(), path()]) {
            let sockets = sockets.each_ref().map(|path| path.to_str().unwrap());
            match with_sockets(&spec, sockets) {
                Ok(arguments) => prop_assert_eq!(grammar::parse(&arguments).unwrap(), expected(&spec, sockets)),
                Err(error) => {
                    // Refused for a reason: one of the values has what vfkit cannot take.
                    let mut values: Vec<String> = sockets.map(str::to_owned).into();
                    values.extend([&spec.kernel, &spec.initramfs].map(|path| path.display().to_string()));
                    if let Console::File(path) = &spec.console {
                        values.push(path.display().to_string());
                    }
                    values.extend(spec.disks.iter().flat_map(|disk| [disk.path.display().to_string(), disk.id.clone()]));
                    values.extend(spec.shares.iter().flat_map(|share| [share.dir.display().to_string(), share.tag.clone()]));
                    let special = |text: &String| text.chars().any(|c| ",\"%?#".contains(c) || c.is_control());
                    let reason = spec.cmdline.contains('"')
                        || values.iter().any(special)
                        || sockets.iter().any(|path| path.len() > MAX_SOCKET_PATH - VFKIT_OWN_SOCKET);
                    prop_assert!(reason, "{error}");
                }
            }
        }
    }

    #[test]
    fn every_refusal_says_what_is_wrong() {
        let cases = [
            (MachineSpec { kernel: "/a,b/vmlinux".into(), ..spec() }, "kernel /a,b/vmlinux", "','"),
            (MachineSpec { initramfs: "/a\"b".into(), ..spec() }, "initramfs", "LAZYROOT_HOME"),
            (MachineSpec { kernel: "vmlinux".into(), ..spec() }, "whole path", "vmlinux"),
            (MachineSpec { cmdline: "a=\"b c\"".into(), ..spec() }, "double quote", "--append"),
        ];
        for (spec, what, way_out) in cases {
            let error = with_sockets(&spec, SOCKETS).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(way_out), "{error}");
        }
        let long = format!("/{}", "x".repeat(MAX_SOCKET_PATH));
        let error = with_sockets(&spec(), [&long, "/r", "/n"]).unwrap_err().to_string();
        assert!(error.contains("104 bytes") && error.contains("LAZYROOT_HOME"), "{error}");
        // vfkit's own socket beside gvproxy's has to fit too.
        let near = format!("/{}/n", "x".repeat(MAX_SOCKET_PATH - 3));
        let user = MachineSpec { network: Network::User, ..spec() };
        assert!(with_sockets(&spec(), [SOCKETS[0], SOCKETS[1], &near]).is_ok());
        assert!(matches!(with_sockets(&user, [SOCKETS[0], SOCKETS[1], &near]), Err(ArgumentError::SocketPath { .. })));
    }
}
