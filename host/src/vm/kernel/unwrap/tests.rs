//! Small kernels of every form, whole and damaged.

use super::*;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::lz4;
use proptest::prelude::*;
use std::io::Read;

/// An ELF file with nothing but a Xen note of `kind`.
fn elf_with_note(kind: u32) -> Vec<u8> {
    let mut elf = vec![0u8; 64 + 56];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[18..20].copy_from_slice(&62u16.to_le_bytes());
    elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
    elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
    elf[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&4u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    elf[96..104].copy_from_slice(&20u64.to_le_bytes());
    for word in [4u32, 4, kind, u32::from_le_bytes(*b"Xen\0"), 0x1000000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf
}

/// A bzImage around `payload`, which ends with the uncompressed size.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 1024 + 16];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x236] = 1;
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    [&file, payload, b"trailer"].concat()
}

fn sized(compressed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
    [compressed, (kernel.len() as u32).to_le_bytes().into()].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
    out
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    liblzma::bufread::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn a_pvh_kernel_is_taken_out_of_a_bzimage_of_every_usual_compression() {
    let kernel = elf_with_note(18);
    let zstd = zstd::encode_all(&kernel[..], 1).unwrap();
    let others = [zstd, xz(&kernel), lz4::compress(&kernel)].map(|compressed| sized(compressed, &kernel));
    for payload in [gzip(&kernel), kernel.clone()].into_iter().chain(others) {
        let file = bzimage(&payload);
        let unwrapped = unwrap(&file).unwrap();
        assert_eq!(unwrapped.format, Format::Pvh);
        assert_eq!(unwrapped.bytes, kernel);
    }
}

#[test]
fn a_bzimage_without_a_pvh_entry_boots_as_it_is() {
    let kernel = elf_with_note(19);
    let file = bzimage(&gzip(&kernel));
    let unwrapped = unwrap(&file).unwrap();
    assert_eq!(unwrapped.format, Format::BzImage);
    assert_eq!(unwrapped.bytes, file);
}

#[test]
fn a_payload_of_another_size_than_announced_is_refused() {
    let kernel = elf_with_note(18);
    let file = bzimage(&sized(xz(&kernel), &kernel[1..]));
    assert!(matches!(unwrap(&file), Err(UnwrapError::Damaged(_))));
}

fn lzma(bytes: &[u8]) -> Vec<u8> {
    let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut out = Vec::new();
    liblzma::bufread::XzEncoder::new_stream(bytes, stream).read_to_end(&mut out).unwrap();
    out
}

fn image() -> Vec<u8> {
    let mut image = vec![7u8; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARMd");
    image
}

/// A zboot program that says it is compressed by `kind`.
fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 64];
    file[..2].copy_from_slice(b"MZ");
    file[4..8].copy_from_slice(b"zimg");
    file[8..12].copy_from_slice(&64u32.to_le_bytes());
    file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    // Most compressions are followed by the size, which is no part of the payload.
    [&file, payload, &[0, 16, 0, 0]].concat()
}

/// A PE program with these sections, 512 bytes apart or more.
fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const ALIGN: usize = 512;
    let optional = 112 + 16 * 8;
    let mut file = vec![0u8; 64];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 64;
    file.extend_from_slice(b"PE\0\0");
    // Machine (arm64), sections, time, symbols (2), size of the optional header, characteristics.
    file.extend_from_slice(&0xaa64u16.to_le_bytes());
    file.extend_from_slice(&(sections.len() as u16).to_le_bytes());
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(&(optional as u16).to_le_bytes());
    file.extend_from_slice(&0x22u16.to_le_bytes());
    let at = file.len();
    file.resize(at + optional, 0);
    file[at..at + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    file[at + 108..at + 112].copy_from_slice(&16u32.to_le_bytes());
    let mut data = (file.len() + sections.len() * 40).next_multiple_of(ALIGN);
    for (name, content) in sections {
        let mut header = [0u8; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let size = content.len() as u32;
        header[8..12].copy_from_slice(&size.to_le_bytes());
        header[12..16].copy_from_slice(&(data as u32).to_le_bytes());
        header[16..20].copy_from_slice(&(content.len().next_multiple_of(ALIGN) as u32).to_le_bytes());
        header[20..24].copy_from_slice(&(data as u32).to_le_bytes());
        file.extend_from_slice(&header);
        data += content.len().next_multiple_of(ALIGN);
    }
    for (_, content) in sections {
        file.resize(file.len().next_multiple_of(ALIGN), 0);
        file.extend_from_slice(content);
    }
    file.resize(file.len().next_multiple_of(ALIGN), 0);
    file
}

fn assert_unwraps_to_image(file: &[u8], what: &str) {
    let unwrapped = unwrap(file).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(unwrapped.format, Format::Image, "{what}");
    assert!(unwrapped.bytes == image(), "{what}");
}

#[test]
fn arm64_kernels_are_unwrapped_from_every_compression_plain_and_in_zboot() {
    assert_unwraps_to_image(&image(), "as it is");
    let zstd = zstd::encode_all(&image()[..], 1).unwrap();
    let kinds = [
        (gzip(&image()), vec!["gzip"]),
        (zstd, vec!["zstd", "zstd22"]),
        (xz(&image()), vec!["xz", "xzkern"]),
        (lzma(&image()), vec!["lzma"]),
        (lz4::compress(&image()), vec!["lz4"]),
    ];
    for (packed, names) in kinds {
        assert_unwraps_to_image(&packed, names[0]);
        for name in names {
            assert_unwraps_to_image(&zboot(name, &packed), name);
        }
    }
}

#[test]
fn a_uki_gives_its_kernel_and_keeps_its_command_line() {
    let zboot = zboot("gzip", &gzip(&image()));
    for linux in [image(), zboot] {
        let sections: [(&str, &[u8]); 3] =
            [(".uname", b"6.12.1\n"), (".cmdline", b"root=/dev/sda evil"), (".linux", &linux)];
        let uki = pe(&sections);
        assert_unwraps_to_image(&uki, "UKI");
        assert_eq!(uki_release(&uki).as_deref(), Some("6.12.1"));
    }
    let bz = bzimage(&gzip(&elf_with_note(18)));
    assert_eq!(unwrap(&pe(&[(".linux", &bz)])).unwrap().format, Format::Pvh);
    assert_eq!(uki_release(&pe(&[(".linux", &bz)])), None);
    let no_kernel = unwrap(&pe(&[(".text", b"x")])).unwrap_err().to_string();
    assert!(no_kernel.contains("no Linux kernel"), "{no_kernel}");
}

#[test]
fn what_cannot_boot_is_refused_by_name() {
    let mut riscv = vec![0u8; 64];
    riscv[0x30..0x35].copy_from_slice(b"RISCV");
    let mut arm = vec![0u8; 64];
    arm[0x24..0x28].copy_from_slice(&0x016f_2818u32.to_le_bytes());
    let mut elf = elf_with_note(19);
    elf[18] = 243;
    let mut old = bzimage(b"");
    old[0x206..0x208].copy_from_slice(&0x20au16.to_le_bytes());
    let mut small = bzimage(b"");
    small[0x236] = 0;
    let cases = [
        (riscv.clone(), "riscv64"),
        (gzip(&riscv), "riscv64"),
        (arm, "32-bit arm"),
        (elf, "riscv"),
        (elf_with_note(19), "PVH"),
        (old, "3.8"),
        (small, "32-bit x86"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (vec![0x89, b'L', b'Z', b'O', 0, 1], "lzo"),
        (zboot("lzo", b"x"), "lzo"),
        (zboot("brotli", &gzip(&image())), "brotli"),
        (zboot("zstd", &gzip(&image())), "not compressed as its header says"),
        (zboot("zstd", b"plain"), "not compressed as its header says"),
        (Vec::new(), "empty"),
        (b"hello".to_vec(), "no known format"),
    ];
    for (file, word) in cases {
        let error = unwrap(&file).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let mut nested = image();
    for _ in 0..MAX_WRAPPERS {
        nested = gzip(&nested);
    }
    assert!(unwrap(&nested).unwrap_err().to_string().contains("too often"));
}

#[test]
fn what_a_hypervisor_without_firmware_would_hang_on_is_seen_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    let check = |content: &[u8], arch| {
        std::fs::write(&path, content).unwrap();
        check_plain(&path, arch).map_err(|error| error.to_string())
    };
    assert!(check(&image(), Arch::Aarch64).is_ok());
    assert!(check(&bzimage(b"x"), Arch::X86_64).is_ok());
    for (content, arch) in [(gzip(&image()), Arch::Aarch64), (image(), Arch::X86_64), (Vec::new(), Arch::Aarch64)] {
        let error = check(&content, arch).unwrap_err();
        assert!(error.contains("vmlinux") && error.contains("lazyroot kernel import"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(check_plain(&path, Arch::Aarch64), Err(PlainError::Read(..))));
}

/// One file of each form, small.
fn seeds() -> Vec<Vec<u8>> {
    let elf = elf_with_note(18);
    let packed = gzip(&image());
    vec![
        bzimage(&gzip(&elf)),
        bzimage(&sized(xz(&elf), &elf)),
        elf,
        zboot("gzip", &packed),
        zboot("lzma", &lzma(&image())),
        zboot("lz4", &lz4::compress(&image())),
        pe(&[(".uname", b"6.12"), (".linux", &zboot("gzip", &packed))]),
        zstd::encode_all(&image()[..], 1).unwrap(),
        image(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn truncated_and_damaged_files_of_every_form_are_errors_not_panics(
        seed in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        // Most headers are in the first bytes.
        damage in proptest::collection::vec((0usize..1400, any::<u8>()), 0..8),
        whole in any::<bool>(),
    ) {
        let seeds = seeds();
        let mut file = seed.get(&seeds).clone();
        for (at, byte) in damage {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        if !whole {
            file.truncate(cut.index(file.len() + 1));
        }
        let _ = uki_release(&file);
        if let Ok(unwrapped) = unwrap(&file) {
            // What is said to be a kernel is one.
            prop_assert_eq!(unwrap(&unwrapped.bytes).unwrap().format, unwrapped.format);
        }
    }
}

proptest! {
    #[test]
    fn truncated_and_damaged_kernels_are_errors_not_panics(
        cut in 0usize..1400,
        damage in proptest::collection::vec((0usize..1400, any::<u8>()), 0..8),
    ) {
        let kernel = elf_with_note(18);
        let mut file = bzimage(&gzip(&kernel));
        for (at, byte) in damage {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(cut);
        let _ = unwrap(&file);
    }

    #[test]
    fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = unwrap(&bytes);
    }
}
