//! A stand-in for vfkit, which needs macOS: its command line and its API, with QEMU behind them. For the tests alone.
//!
//! Everything around it is real: lazyroot's backend, its sockets, the kernel, the guest. What it cannot tell is how
//! Apple's framework behaves.

pub mod grammar;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lazyroot::vm::hypervisor::qemu;
use lazyroot::vm::hypervisor::qemu::accelerator::Accelerator;
use lazyroot::vm::kernel::arch::Arch;
use lazyroot::vm::process::end_with_parent;
use serde_json::{Value, json};

use self::grammar::{CommandLine, Device};
use crate::inputs::VHOST_DEVICE_VSOCK;
use crate::wait::PATIENCE;

/// What QEMU's emulated hardware wants to hear, and Apple's would not: without it a boot takes seconds longer.
const EMULATED: &str = "mitigations=off tsc=reliable no_timer_check nokaslr random.trust_cpu=on clearcpuid=cx16 \
                        i8042.noaux i8042.nokbd i8042.noprobe cryptomgr.notests";

/// Runs the machine of a command line until it ends.
///
/// # Errors
/// If vfkit would refuse it, or QEMU does.
pub fn run(arguments: &[String]) -> Result<ExitStatus> {
    let line = grammar::parse(arguments).map_err(anyhow::Error::msg)?;
    let dir = tempfile::Builder::new().prefix("vf").tempdir()?;
    let mut devices = vec![start_vsock(&line, dir.path())?];
    // The API is there before the machine runs, as vfkit's is.
    let listener = line.restful.as_deref().map(UnixListener::bind).transpose().context("--restful-uri")?;
    let monitor = dir.path().join("qmp");
    let mut qemu = Command::new(qemu::program(Arch::HOST)?);
    qemu.args(qemu_arguments(&line, dir.path())?);
    end_with_parent(&mut qemu);
    let mut qemu = qemu.spawn().context("qemu")?;
    if let Some(listener) = listener {
        let line = line.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                // Who asked may be gone.
                let _ = answer(stream, &line, &monitor);
            }
        });
    }
    let status = qemu.wait()?;
    for device in &mut devices {
        let _ = device.kill();
        let _ = device.wait();
    }
    if let Some(socket) = &line.restful {
        let _ = std::fs::remove_file(socket);
    }
    Ok(status)
}

/// The guest's connections arrive at `PREFIX_PORT`, which is a link to where vfkit would bring them.
fn start_vsock(line: &CommandLine, dir: &Path) -> Result<Child> {
    let prefix = dir.join("v");
    for device in &line.devices {
        if let Device::Vsock { port, socket, listen } = device {
            ensure!(listen, "only the guest connects");
            std::os::unix::fs::symlink(socket, dir.join(format!("v_{port}")))?;
        }
    }
    let socket = dir.join("vhost");
    let mut device = Command::new(VHOST_DEVICE_VSOCK.path());
    device.args(["--vm", &format!("guest-cid=3,socket={},uds-path={}", socket.display(), prefix.display())]);
    end_with_parent(&mut device);
    let child = device.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("vhost-device-vsock")?;
    wait_for(&socket)?;
    Ok(child)
}

fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "no {} within {PATIENCE:?}", socket.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn qemu_arguments(line: &CommandLine, dir: &Path) -> Result<Vec<String>> {
    let boot = line.bootloader.as_ref().context("no bootloader")?;
    let arch = Arch::HOST;
    let memory = format!("{}M", line.memory_mib);
    let cmdline = match arch {
        Arch::X86_64 => format!("{} {EMULATED}", boot.cmdline),
        Arch::Aarch64 => boot.cmdline.clone(),
    };
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(str::to_owned).into();
    let mut add = |words: [&str; 2]| arguments.extend(words.map(str::to_owned));
    add(["-M", &format!("{},memory-backend=mem", qemu::machine(arch))]);
    add(["-cpu", Accelerator::Tcg.cpu(arch)]);
    add(["-accel", "tcg"]);
    add(["-smp", &line.cpus.to_string()]);
    add(["-m", &memory]);
    add(["-object", &format!("memory-backend-memfd,id=mem,size={memory},share=on")]);
    add(["-kernel", &boot.kernel]);
    add(["-initrd", &boot.initrd]);
    add(["-append", &cmdline]);
    add(["-qmp", &format!("unix:{}/qmp,server=on,wait=off", dir.display())]);
    add(["-chardev", &format!("socket,id=vsock,path={}/vhost", dir.display())]);
    add(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    add(["-device", "virtio-serial-pci"]);
    let option = |text: &str| text.replace(',', ",,");
    for device in &line.devices {
        match device {
            Device::Rng => add(["-device", "virtio-rng-pci"]),
            Device::Balloon => add(["-device", "virtio-balloon-pci"]),
            Device::SerialLog(path) => add(["-chardev", &format!("file,id=console,path={}", option(path))]),
            Device::SerialStdio => add(["-chardev", "stdio,id=console,signal=off"]),
            Device::SerialPty => add(["-chardev", "pty,id=console"]),
            Device::Vsock { .. } => (),
            Device::Blk { path, readonly, id } => {
                let id = id.as_deref().unwrap_or("disk");
                let readonly = if *readonly { "on" } else { "off" };
                add(["-drive", &format!("if=none,format=raw,id={id},readonly={readonly},file={}", option(path))]);
                add(["-device", &format!("virtio-blk-pci,drive={id},serial={id}")]);
            }
            Device::NetNat => {
                add(["-netdev", "user,id=net"]);
                add(["-device", "virtio-net-pci,netdev=net"]);
            }
            Device::NetSocket { path, mac } => {
                let local = format!("{}/net", dir.display());
                let net = format!("local.type=unix,local.path={local},remote.type=unix,remote.path={}", option(path));
                add(["-netdev", &format!("dgram,id=net,{net}")]);
                let mac = mac.as_deref().map_or(String::new(), |mac| format!(",mac={mac}"));
                add(["-device", &format!("virtio-net-pci,netdev=net{mac}")]);
            }
            Device::Fs { .. } => bail!("the stand-in has no virtio-fs"),
        }
    }
    add(["-device", "virtconsole,chardev=console"]);
    Ok(arguments)
}

/// One request of vfkit's API.
fn answer(stream: UnixStream, line: &CommandLine, monitor: &Path) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut text = String::new();
        ensure!(reader.read_line(&mut text)? > 0, "the request ends early");
        if text.trim_end().is_empty() {
            break;
        }
        head.push(text.trim_end().to_owned());
    }
    let headers: HashMap<String, String> = head[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(Ok(0), |text| text.parse())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut request = head[0].split(' ');
    let (method, path) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let (status, reply) = match reply(method, path, &body, line, monitor) {
        Ok(reply) => reply,
        Err(error) => ("500 Internal Server Error", json!({ "error": format!("{error:#}") }).to_string()),
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", reply.len())?;
    Ok(stream.write_all(reply.as_bytes())?)
}

fn reply(method: &str, path: &str, body: &[u8], line: &CommandLine, monitor: &Path) -> Result<(&'static str, String)> {
    match (method, path) {
        ("GET", "/vm/state") => {
            let state = match tell(monitor, "query-status").map(|status| status["status"].clone()) {
                Ok(status) if status == "running" => "VirtualMachineStateRunning",
                Ok(status) if status == "paused" => "VirtualMachineStatePaused",
                Ok(_) | Err(_) => "VirtualMachineStateStarting",
            };
            Ok(("200 OK", json!({ "state": state, "canPause": true, "canHardStop": true }).to_string()))
        }
        ("POST", "/vm/state") => {
            let asked: Value = serde_json::from_slice(body)?;
            let command = match asked["state"].as_str() {
                Some("Pause") => "stop",
                Some("Resume") => "cont",
                Some("Stop") => "system_powerdown",
                Some("HardStop") => "quit",
                other => bail!("invalid new VMState: {other:?}"),
            };
            tell(monitor, command)?;
            Ok(("202 Accepted", String::new()))
        }
        ("GET", "/vm/inspect") => {
            let memory = u64::from(line.memory_mib) << 20;
            Ok(("200 OK", json!({ "vcpus": line.cpus, "memoryBytes": memory }).to_string()))
        }
        _ => Ok(("404 Not Found", String::new())),
    }
}

/// One command of QEMU's monitor.
fn tell(monitor: &Path, command: &str) -> Result<Value> {
    let mut stream = BufReader::new(UnixStream::connect(monitor)?);
    for command in ["qmp_capabilities", command] {
        writeln!(stream.get_mut(), "{}", json!({ "execute": command }))?;
        loop {
            let mut text = String::new();
            ensure!(stream.read_line(&mut text)? > 0, "QEMU closed its monitor");
            let mut said: Value = serde_json::from_str(&text)?;
            if let Some(error) = said.get("error") {
                bail!("{error}");
            }
            if said.get("return").is_some() && command != "qmp_capabilities" {
                return Ok(said["return"].take());
            }
            if said.get("return").is_some() {
                break;
            }
        }
    }
    bail!("no command")
}

/// A folder with the stand-in under vfkit's name, to be put in front of `PATH`.
///
/// # Panics
/// If it cannot be made.
pub fn path_with(standin: &str, dir: &Path) -> std::ffi::OsString {
    std::os::unix::fs::symlink(standin, dir.join("vfkit")).expect("a link to the stand-in");
    path_of(dir)
}

/// `PATH` with a folder in front.
///
/// # Panics
/// If the folder has a colon in its name.
pub fn path_of(dir: &Path) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = [dir.to_owned()].into_iter().chain(std::env::split_paths(&rest)).collect();
    std::env::join_paths(folders).expect("no colon in a temporary folder")
}
