//! Promises about vfkit's command line: whatever a machine has, vfkit reads it as it was meant, or it is refused by name.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lazyroot::serve::MAX_SOCKET_PATH;
use lazyroot::vm::hypervisor::console::Console;
use lazyroot::vm::hypervisor::machine::{Access, Disk, MachineSpec, Network, Share};
use lazyroot::vm::hypervisor::vfkit::arguments::{ArgumentError, GVPROXY_MAC, Sockets, VFKIT_OWN_SOCKET, arguments};
use lazyroot_tests::inputs::VFKIT_PARSER;
use lazyroot_tests::vfkit::grammar::{self, Bootloader, CommandLine, Device};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

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

fn with_sockets(spec: &MachineSpec, [vsock, rest, network]: [&str; 3]) -> Result<Vec<String>, ArgumentError> {
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
fn expected(spec: &MachineSpec, [vsock, rest, network]: [&str; 3]) -> CommandLine {
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
    CommandLine {
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

/// What vfkit's own parser makes of what it reads, for `line`.
fn as_vfkit_says(line: &CommandLine) -> serde_json::Value {
    let device = |device: &Device| match device {
        Device::Rng => json!({"kind": "virtiorng"}),
        Device::Balloon => json!({"kind": "virtioballoon"}),
        Device::SerialLog(path) => json!({"kind": "virtioserial", "logFile": path}),
        Device::SerialStdio => json!({"kind": "virtioserial", "usesStdio": true}),
        Device::SerialPty => json!({"kind": "virtioserial", "usesPty": true}),
        Device::Vsock { port, socket, listen } => {
            json!({"kind": "virtiosock", "port": port, "socketURL": socket, "listen": listen})
        }
        Device::Blk { path, readonly, id } => {
            let mut device =
                json!({"kind": "virtioblk", "devName": "virtio-blk", "imagePath": path, "deviceIdentifier": id});
            if *readonly {
                device["readOnly"] = true.into();
            }
            device
        }
        Device::Fs { dir, tag } => json!({"kind": "virtiofs", "sharedDir": dir, "mountTag": tag}),
        Device::NetNat => json!({"kind": "virtionet", "nat": true}),
        Device::NetSocket { path, mac } => json!({
            "kind": "virtionet", "nat": false, "unixSocketPath": path, "macAddress": mac, "vfkitMagic": true
        }),
    };
    let devices: Vec<_> = line.devices.iter().map(device).collect();
    let bootloader = line.bootloader.as_ref().unwrap();
    json!({
        "restful": format!("unix://{}", line.restful.as_ref().unwrap()),
        "machine": {
            "vcpus": line.cpus,
            "memoryBytes": u64::from(line.memory_mib) << 20,
            "bootloader": {
                "kind": "linuxBootloader",
                "vmlinuzPath": bootloader.kernel,
                "initrdPath": bootloader.initrd,
                "kernelCmdLine": bootloader.cmdline,
            },
            "devices": devices,
        },
    })
}

#[test]
#[ignore = "needs Go and vfkit's sources: make check-vfkit"]
fn vfkits_own_parser_agrees() {
    let mut parser = Command::new(VFKIT_PARSER.path());
    let mut parser = parser.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut questions = parser.stdin.take().unwrap();
    let mut answers = BufReader::new(parser.stdout.take().unwrap());
    // vfkit opens disks to see whether they are raw.
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("a disk's @file");
    fs::write(&disk, [0; 4096]).unwrap();
    let mut runner = TestRunner::deterministic();
    let mut asked = 0;
    while asked < 2000 {
        let (mut spec, sockets) = (machine(), [path(), path(), path()]).new_tree(&mut runner).unwrap().current();
        for part in &mut spec.disks {
            part.path = disk.clone();
        }
        let sockets = sockets.each_ref().map(|path| path.to_str().unwrap());
        let Ok(arguments) = with_sockets(&spec, sockets) else { continue };
        serde_json::to_writer(&mut questions, &arguments).unwrap();
        questions.write_all(b"\n").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer, as_vfkit_says(&expected(&spec, sockets)), "{arguments:?}");
        asked += 1;
    }
    drop(questions);
    assert!(parser.wait().unwrap().success());
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
