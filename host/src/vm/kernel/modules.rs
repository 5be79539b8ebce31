//! Kernel modules: which ones the guest needs, in which order, ready to be loaded.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};

/// A module is never larger than this many bytes, unpacked.
const MAX_MODULE: u64 = 64 << 20;

/// What the guest needs of its kernel: module name, and what for.
const REQUIRED: &[(&str, &str)] = &[
    ("virtio_pci", "virtio devices"),
    ("vmw_vsock_virtio_transport", "vsock to the host"),
    ("fuse", "FUSE, which brings metadata and content"),
    ("erofs", "EROFS, for metadata and large files"),
    ("overlay", "overlayfs"),
];

/// What a guest can do without: its console under vfkit, which it has late or never if this is no part of its kernel.
const OPTIONAL: (&str, &str) = ("virtio_console", "a virtio console");

/// What older kernels need besides: before 6.12 EROFS mounts block devices only.
const REQUIRED_FOR_LOOP: (&str, &str) =
    ("loop", "EROFS: without CONFIG_EROFS_FS_BACKED_BY_FILE (Linux 6.12) it mounts through a loop device");

/// What a VM may need of its kernel besides: only then are the modules for it in its initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// A network.
    Network,
    /// A disk of its own.
    Disk,
    /// Folders of the host.
    Share,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Network, Self::Disk, Self::Share];

    /// Modules, and what for.
    fn modules(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Network => &[("virtio_net", "a network")],
            Self::Disk => &[("virtio_blk", "a disk"), ("ext4", "a disk's file system")],
            Self::Share => &[("virtiofs", "folders of the host")],
        }
    }
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Network => "a network",
            Self::Disk => "a disk of its own",
            Self::Share => "folders of the host",
        })
    }
}

/// A module, unpacked.
#[derive(Debug)]
pub struct Module {
    /// As `lsmod` shows it.
    pub name: String,
    /// The ELF, without its signature.
    pub content: Vec<u8>,
}

impl Module {
    /// Its file in a bundle and in an initramfs.
    pub fn file_name(&self) -> String {
        format!("{}.ko", self.name)
    }
}

/// Reads a file by its path.
type ReadFile<'a> = Box<dyn Fn(&str) -> Result<Vec<u8>> + 'a>;

/// The modules of one kernel release, by name.
pub struct ModuleTree<'a> {
    /// Paths by module name.
    paths: BTreeMap<String, String>,
    builtin: HashSet<String>,
    read: ReadFile<'a>,
}

/// `vmw-vsock.ko.xz` is the module `vmw_vsock`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

impl<'a> ModuleTree<'a> {
    /// The tree of the module files `paths`, with the text of `modules.builtin`.
    pub fn new(
        paths: impl IntoIterator<Item = String>,
        builtin: &str,
        read: impl Fn(&str) -> Result<Vec<u8>> + 'a,
    ) -> Self {
        let paths = paths.into_iter().filter_map(|path| Some((module_name(&path)?, path))).collect();
        Self { paths, builtin: builtin.lines().filter_map(module_name).collect(), read: Box::new(read) }
    }

    /// What lazyroot's guest needs that is not built in, dependencies first. `release` is the kernel's, `config` the text
    /// of its configuration if it is there.
    ///
    /// # Errors
    /// If the kernel lacks something; the error says what.
    pub fn needed(&self, release: &str, config: Option<&str>) -> Result<Vec<Module>> {
        let (major, minor) = version(release).with_context(|| format!("'{release}' is no kernel release"))?;
        if (major, minor) < (6, 5) {
            bail!("kernel {release} is too old: data-only overlay layers need 6.5 (6.12 is best)");
        }
        // Without a configuration to look at, the version must do.
        let has = |option: &str| config.is_none_or(|text| text.lines().any(|line| line == format!("{option}=y")));
        if !has("CONFIG_RD_LZ4") {
            bail!("kernel {release} cannot unpack an LZ4 initramfs: it needs CONFIG_RD_LZ4");
        }
        let mut roots = REQUIRED.to_vec();
        if self.paths.contains_key(OPTIONAL.0) {
            // Behind the bus: what the later ones say is to be visited.
            roots.insert(1, OPTIONAL);
        }
        if (major, minor) < (6, 12) || !has("CONFIG_EROFS_FS_BACKED_BY_FILE") {
            roots.push(REQUIRED_FOR_LOOP);
        }
        self.closure(&roots).with_context(|| format!("kernel {release} cannot run a guest"))
    }

    /// The modules for a feature, dependencies first; `None` if the kernel lacks any.
    pub fn optional(&self, feature: Feature) -> Option<Vec<Module>> {
        self.closure(feature.modules()).ok()
    }

    /// Those of the `roots` (name, and what for) that are not built in, dependencies first.
    ///
    /// # Errors
    /// If the kernel lacks something; the error says what.
    pub fn closure(&self, roots: &[(&str, &str)]) -> Result<Vec<Module>> {
        let (mut modules, mut visited) = (Vec::new(), HashSet::new());
        for (name, purpose) in roots {
            self.add(name, &mut modules, &mut visited)
                .with_context(|| format!("the kernel lacks what the guest needs for {purpose}"))?;
        }
        Ok(modules)
    }

    fn add(&self, name: &str, modules: &mut Vec<Module>, visited: &mut HashSet<String>) -> Result<()> {
        if self.builtin.contains(name) || !visited.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.paths.get(name).with_context(|| format!("no module {name}, and it is not built in"))?;
        let content = unpack(path, &(self.read)(path)?).with_context(|| format!("cannot unpack {path}"))?;
        let info = modinfo(&content).with_context(|| format!("{path} is no kernel module"))?;
        for dependency in dependencies(&info) {
            self.add(&dependency, modules, visited)?;
        }
        for dependency in soft_dependencies(&info).filter(|name| self.paths.contains_key(name)) {
            self.add(&dependency, modules, visited)?;
        }
        modules.push(Module { name: name.to_owned(), content: without_signature(content) });
        Ok(())
    }
}

/// Major and minor version of a release: `6.12.107+deb13` is (6, 12).
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn unpack(path: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let reader: Box<dyn Read + '_> = match path.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(packed)),
        Some("zst") => Box::new(zstd::Decoder::new(packed)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(packed)),
        _ => Box::new(packed),
    };
    let mut content = Vec::new();
    reader.take(MAX_MODULE).read_to_end(&mut content)?;
    Ok(content)
}

/// The text of a module's `.modinfo` section: `key=value` fields that end in NUL.
fn modinfo(module: &[u8]) -> Result<String> {
    let elf = object::File::parse(module)?;
    let section = elf.section_by_name(".modinfo").context("it has no .modinfo section")?;
    Ok(String::from_utf8_lossy(section.data()?).into_owned())
}

/// What a module cannot be loaded without.
fn dependencies(info: &str) -> impl Iterator<Item = String> {
    let lists = info.split('\0').filter_map(|field| field.strip_prefix("depends="));
    lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(|name| name.replace('-', "_"))
}

/// What a module asks for by itself when it is loaded, and there is no modprobe in the guest to bring. It may name an
/// algorithm, of which the generic module is enough: libcrc32c, below erofs, asks for `crc32c`.
fn soft_dependencies(info: &str) -> impl Iterator<Item = String> {
    let fields = info.split('\0').filter_map(|field| field.strip_prefix("softdep="));
    let before = fields.filter_map(|text| text.strip_prefix("pre:")).filter_map(|text| text.split("post:").next());
    let names = before.flat_map(str::split_ascii_whitespace).map(|name| name.replace('-', "_"));
    names.flat_map(|name| [format!("{name}_generic"), name])
}

/// Cuts off the signature that a build appended: the guest trusts its initramfs, and checking a signature under
/// emulation takes longer than loading the module.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    /// `struct module_signature`; its last field is the signature's length, big-endian.
    const INFO: usize = 12;
    let Some(body) = module.strip_suffix(MARK) else { return module };
    let Some((rest, info)) = body.split_last_chunk::<INFO>() else { return module };
    let length = u32::from_be_bytes(info[8..].try_into().expect("4 bytes")) as usize;
    if let Some(end) = rest.len().checked_sub(length) {
        module.truncate(end);
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions() {
        assert_eq!(module_name("kernel/net/vmw-vsock/vmw_vsock-x.ko.xz").as_deref(), Some("vmw_vsock_x"));
        assert_eq!(module_name("modules.dep"), None);
        assert_eq!(version("6.12.107+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("nonsense"), None);
    }

    #[test]
    fn a_signature_is_cut_off_and_anything_else_left_alone() {
        let signed = [b"module".as_slice(), b"SIGN", &[0; 8], &4u32.to_be_bytes(), b"~Module signature appended~\n"];
        assert_eq!(without_signature(signed.concat()), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        assert_eq!(without_signature(b"~Module signature appended~\n".to_vec()), b"~Module signature appended~\n");
    }

    #[test]
    fn hard_and_soft_dependencies_are_told_apart() {
        let info = "name=x\0depends=lib-crc,netfs\0softdep=pre: crc32c post: late\0";
        assert_eq!(dependencies(info).collect::<Vec<_>>(), ["lib_crc", "netfs"]);
        assert_eq!(soft_dependencies(info).collect::<Vec<_>>(), ["crc32c_generic", "crc32c"]);
        assert_eq!(dependencies("depends=\0").count(), 0);
    }

    #[test]
    fn a_kernel_that_lacks_something_is_refused_by_name() {
        let tree = ModuleTree::new([], "kernel/fs/fuse/fuse.ko\n", |_| unreachable!());
        let error = format!("{:#}", tree.needed("6.12.1", None).unwrap_err());
        assert!(error.contains("virtio") && error.contains("6.12.1"), "{error}");
        let error = format!("{:#}", tree.needed("5.10.0", None).unwrap_err());
        assert!(error.contains("too old"), "{error}");
        let old = ModuleTree::new(
            [],
            "virtio_pci.ko\nvmw_vsock_virtio_transport.ko\nfuse.ko\nerofs.ko\noverlay.ko\n",
            |_| unreachable!(),
        );
        assert!(old.needed("6.12.0", None).unwrap().is_empty());
        assert!(format!("{:#}", old.needed("6.6.0", None).unwrap_err()).contains("loop"));
        let config = "CONFIG_RD_LZ4=y\n# CONFIG_EROFS_FS_BACKED_BY_FILE is not set\n";
        assert!(format!("{:#}", old.needed("6.12.0", Some(config)).unwrap_err()).contains("loop"));
        assert!(format!("{:#}", old.needed("6.12.0", Some("")).unwrap_err()).contains("CONFIG_RD_LZ4"));
    }
}
