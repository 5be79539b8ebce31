//! Promises about arm64 guests: Debian's arm64 kernel and programs, through the same vsock and FUSE as on x86-64;
//! emulated unless this machine is one. Run by `make test-arm64`.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lazyroot_tests::images::Shared;
use lazyroot_tests::inputs::ARM64_KERNEL_DEB;
use lazyroot_tests::inputs::ARM64_ROOTFS;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::rootfs;

/// A home with both architectures' kernels and images.
fn home() -> Arc<Lazyroot> {
    static HOME: Shared = Shared::empty();
    HOME.get(|lazyroot| {
        lazyroot.ok(["kernel", "import", &kernel_deb().to_string_lossy()]);
        lazyroot.import(&rootfs(), "native");
        lazyroot.import(&ARM64_ROOTFS.path(), "arm64");
    })
}

fn kernel_deb() -> PathBuf {
    ARM64_KERNEL_DEB.path()
}

/// The release of Debian's arm64 kernel.
fn release() -> String {
    let name = kernel_deb().file_name().unwrap().to_str().unwrap().to_owned();
    name.strip_prefix("linux-image-").unwrap().split('_').next().unwrap().to_owned()
}

fn run(lazyroot: &Lazyroot, arguments: &[&str]) -> Output {
    let mut command = lazyroot.command(["run", "--hypervisor", "qemu:tcg"].iter().chain(arguments));
    command.stdin(Stdio::null()).output().expect("lazyroot starts")
}

/// What a run that must succeed said.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_command_runs_in_an_arm64_image_with_its_streams_and_status() {
    let home = home();
    let script = "cat; uname -m; findmnt -n -o FSTYPE,SOURCE /; \
                  python3 -c 'import json, platform; print(platform.machine())'; echo oops >&2; exit 7";
    let mut command = home.command(["run", "--hypervisor", "qemu:tcg", "arm64", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{err}");
    assert_eq!(out, "from stdin\naarch64\noverlay lazyroot\naarch64\n", "{err}");
    assert_eq!(err, "oops\n");
}

#[test]
fn every_byte_of_an_arm64_image_reads_as_it_was_imported() {
    let home = home();
    // Sizes of every kind: links, folders, one block, many ranges.
    let script = "cd / && find bin/ usr/lib/aarch64-linux-gnu etc -type f -print0 | sort -z | xargs -0 sha256sum";
    let mut here = Command::new("sh");
    here.args(["-c", &script.replace("cd /", "cd \"$ROOT\"")]).env("LC_ALL", "C");
    let here = here.env("ROOT", ARM64_ROOTFS.path()).output().unwrap();
    // A network would bring a resolv.conf of its own.
    let there = run(&home, &["--net", "none", "--env", "LC_ALL=C", "arm64", "--", "sh", "-c", script]);
    let (here, there) = (said(&here), said(&there));
    assert!(here.lines().count() > 300, "{} files", here.lines().count());
    assert_eq!(here, there);
}

#[test]
fn the_image_s_architecture_chooses_kernel_and_machine() {
    let home = home();
    let native = run(&home, &["native", "--", "uname", "-m"]);
    assert_eq!(said(&native).trim(), std::env::consts::ARCH);
    let foreign = run(&home, &["arm64", "--", "uname", "-mr"]);
    assert_eq!(said(&foreign).trim(), format!("{} aarch64", release()));
}

#[test]
#[cfg(not(target_arch = "aarch64"))]
fn what_does_not_fit_together_is_refused_by_name() {
    let home = home();
    let error = home.error(["run", "--kernel", &release(), "native", "--", "true"]);
    assert!(error.contains(&release()) && error.contains("is for aarch64") && error.contains("x86_64"), "{error}");
    let error = home.error(["run", "--hypervisor", "qemu:kvm", "arm64", "--", "true"]);
    assert!(error.contains("KVM") && error.contains("qemu:tcg"), "{error}");
    let mut command = home.command(["run", "--hypervisor", "qemu:tcg", "arm64", "--", "true"]);
    let output = command.env("PATH", "/nowhere").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("qemu-system-aarch64") && error.contains("apt-get install qemu-system-arm"), "{error}");
    // vfkit emulates nothing. Which vfkit does not matter: it is not even started.
    let tools = tempfile::tempdir().unwrap();
    fs::write(tools.path().join("vfkit"), "").unwrap();
    let mut command = home.command(["run", "--hypervisor", "vfkit", "arm64", "--", "true"]);
    let output = command.env("PATH", tools.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("vfkit runs guests of this machine's architecture") && error.contains(&release()),
        "{error}"
    );
}

#[test]
fn distributions_compressed_kernels_boot_from_zboot_and_gzip() {
    let home = home();
    let tree = tempfile::tempdir().unwrap();
    let unpacked = Command::new("dpkg-deb").arg("-x").arg(kernel_deb()).arg(tree.path()).status().unwrap();
    assert!(unpacked.success());
    let vmlinuz = tree.path().join(format!("boot/vmlinuz-{}", release()));
    let image = fs::read(&vmlinuz).unwrap();
    assert_eq!(&image[0x38..0x3c], b"ARMd", "Debian's arm64 kernel is a plain Image");
    let mut gzip = Vec::new();
    flate2::read::GzEncoder::new(&image[..], flate2::Compression::fast()).read_to_end(&mut gzip).unwrap();
    let zstd = zstd::encode_all(&image[..], 3).unwrap();
    let kinds = [("gzip", zboot(b"gzip", &gzip)), ("zstd", zboot(b"zstd", &zstd)), ("plain gzip", gzip.clone())];
    for (kind, file) in kinds {
        fs::write(&vmlinuz, file).unwrap();
        let lazyroot = Lazyroot::default();
        lazyroot.ok(["kernel", "import", &format!("dir:{}", tree.path().display())]);
        // What boots is the Image itself, byte by byte.
        let plain = lazyroot.home().join("kernels").join(release()).join("vmlinux");
        assert!(fs::read(plain).unwrap() == image, "{kind}");
    }
    // And the last one does boot.
    home.ok(["kernel", "import", &format!("dir:{}", tree.path().display())]);
    assert_eq!(said(&run(&home, &["arm64", "--", "uname", "-r"])).trim(), release());
}

/// An EFI zboot file as the kernel's `drivers/firmware/efi/libstub/zboot-header.S` lays it out.
fn zboot(kind: &[u8], payload: &[u8]) -> Vec<u8> {
    /// Where the payload begins: behind the headers, which are of no interest to who does not run EFI.
    const OFFSET: u32 = 4096;
    let mut file = vec![0; OFFSET as usize];
    file[..2].copy_from_slice(b"MZ");
    file[4..8].copy_from_slice(b"zimg");
    file[8..12].copy_from_slice(&OFFSET.to_le_bytes());
    file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[24..24 + kind.len()].copy_from_slice(kind);
    file.extend_from_slice(payload);
    file
}
