//! The part of vfkit's command line that lazyroot uses, read back: written from vfkit's
//! [usage page](https://github.com/crc-org/vfkit/blob/main/doc/usage.md), not from lazyroot's code.

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `--cpus`
    pub cpus: u32,
    /// `--memory`, in MiB
    pub memory_mib: u32,
    /// `--restful-uri`: the unix socket of the API
    pub restful: Option<String>,
    /// `--bootloader`
    pub bootloader: Option<Bootloader>,
    /// `--device`, in order
    pub devices: Vec<Device>,
}

/// `--bootloader linux`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootloader {
    /// `kernel=`
    pub kernel: String,
    /// `initrd=`
    pub initrd: String,
    /// `cmdline=`, without its quotes
    pub cmdline: String,
}

/// One `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of the usage page.
pub enum Device {
    Rng,
    Balloon,
    SerialLog(String),
    SerialStdio,
    SerialPty,
    Vsock { port: u32, socket: String, listen: bool },
    Blk { path: String, readonly: bool, id: Option<String> },
    Fs { dir: String, tag: Option<String> },
    NetNat,
    NetSocket { path: String, mac: Option<String> },
}

type Result<T> = std::result::Result<T, String>;

/// Reads a command line.
///
/// # Errors
/// If it is none that the usage page describes.
pub fn parse(arguments: &[String]) -> Result<CommandLine> {
    let mut parsed = CommandLine::default();
    let mut words = arguments.iter();
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} has no value"))?;
        match option.as_str() {
            "--cpus" => parsed.cpus = number(value)?,
            "--memory" => parsed.memory_mib = number(value)?,
            "--restful-uri" => parsed.restful = Some(uri(value)?),
            "--bootloader" if parsed.bootloader.is_none() => parsed.bootloader = Some(bootloader(value)?),
            "--device" => parsed.devices.push(device(value)?),
            other => return Err(format!("unknown or repeated option {other}")),
        }
    }
    Ok(parsed)
}

fn number(text: &str) -> Result<u32> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

/// `unix://` and an absolute path; a URL's path has no query, fragment or escapes to us.
fn uri(text: &str) -> Result<String> {
    let path = text.strip_prefix("unix://").ok_or("no unix:// URI")?;
    socket(path)
}

fn socket(path: &str) -> Result<String> {
    if !path.starts_with('/') || path.contains(['%', '?', '#']) || path.chars().any(char::is_control) {
        return Err(format!("{path:?} is no plain URL path"));
    }
    // "keep socket paths under 104 bytes"
    if path.len() >= 104 {
        return Err(format!("{path} is too long for a socket"));
    }
    Ok(path.to_owned())
}

/// A comma-separated list in which double quotes protect commas.
fn bootloader(text: &str) -> Result<Bootloader> {
    let mut items = vec![String::new()];
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => items.push(String::new()),
            character => items.last_mut().expect("never empty").push(character),
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    if items[0] != "linux" {
        return Err(format!("no linux bootloader: {}", items[0]));
    }
    let (mut kernel, mut initrd, mut cmdline) = (None, None, None);
    for item in &items[1..] {
        match item.split_once('=') {
            Some(("kernel", path)) => kernel = Some(path.to_owned()),
            Some(("initrd", path)) => initrd = Some(path.to_owned()),
            Some(("cmdline", words)) => cmdline = Some(words.to_owned()),
            _ => return Err(format!("unknown bootloader option {item}")),
        }
    }
    // All three are needed to boot.
    Ok(Bootloader {
        kernel: kernel.ok_or("no kernel")?,
        initrd: initrd.ok_or("no initrd")?,
        cmdline: cmdline.ok_or("no cmdline")?,
    })
}

fn device(text: &str) -> Result<Device> {
    let mut items = text.split(',');
    let kind = items.next().unwrap_or_default();
    let options: Vec<(&str, Option<&str>)> =
        items.map(|item| item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value)))).collect();
    match (kind, &options[..]) {
        ("virtio-rng", []) => Ok(Device::Rng),
        ("virtio-balloon", []) => Ok(Device::Balloon),
        ("virtio-serial", [("logFilePath", Some(path))]) => Ok(Device::SerialLog((*path).to_owned())),
        ("virtio-serial", [("stdio", None)]) => Ok(Device::SerialStdio),
        ("virtio-serial", [("pty", None)]) => Ok(Device::SerialPty),
        ("virtio-vsock", [("port", Some(port)), ("socketURL", Some(path)), direction @ ..]) => {
            let listen = match direction {
                [] | [("listen", None)] => true,
                [("connect", None)] => false,
                _ => return Err(format!("unknown vsock option in {text}")),
            };
            Ok(Device::Vsock { port: number(port)?, socket: socket(path)?, listen })
        }
        ("virtio-blk", options) => {
            let (mut path, mut readonly, mut id) = (None, false, None);
            for option in options {
                match option {
                    ("path", Some(value)) => path = Some((*value).to_owned()),
                    ("readonly", None) => readonly = true,
                    ("deviceId", Some(value)) => id = Some((*value).to_owned()),
                    _ => return Err(format!("unknown disk option in {text}")),
                }
            }
            Ok(Device::Blk { path: path.ok_or("a disk without path")?, readonly, id })
        }
        ("virtio-fs", [("sharedDir", Some(dir)), rest @ ..]) => {
            let tag = match rest {
                [] => None,
                [("mountTag", Some(tag))] => Some((*tag).to_owned()),
                _ => return Err(format!("unknown share option in {text}")),
            };
            Ok(Device::Fs { dir: (*dir).to_owned(), tag })
        }
        ("virtio-net", [("nat", None)]) => Ok(Device::NetNat),
        ("virtio-net", [("unixSocketPath", Some(path)), rest @ ..]) => {
            let mac = match rest {
                [] => None,
                [("mac", Some(mac))] => Some((*mac).to_owned()),
                _ => return Err(format!("unknown network option in {text}")),
            };
            Ok(Device::NetSocket { path: socket(path)?, mac })
        }
        _ => Err(format!("unknown device {text}")),
    }
}
