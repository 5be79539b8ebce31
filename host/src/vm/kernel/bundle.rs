//! Kernel bundles: a kernel with just the modules that a guest needs, imported once and booted many times.
//!
//! A bundle is a folder named by its release: `vmlinuz` as found, `vmlinux` if an uncompressed ELF could be taken
//! out of it, `modules/` unpacked with their load order in `order`, and `bundle.json`.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use serde::{Deserialize, Serialize};

use crate::durable::rename_unsynced;
use crate::home::Home;
use crate::store::{Image, Store};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::modules::{Feature, Module, ModuleTree, version};
use crate::vm::kernel::unwrap::{Format, uki_release, unwrap};
use crate::vm::podman_machine::PodmanMachine;

/// What `bundle.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// As `uname -r` says it.
    pub release: String,
    /// What it runs on.
    pub arch: Arch,
    /// Where it was imported from.
    pub source: String,
    /// A digest over the kernel and its modules: changes when anything that boots does.
    pub id: String,
    /// Modules that every guest needs, in load order.
    pub modules: Vec<String>,
    /// Modules for what only some guests have. What the kernel cannot do is not there, and nothing is if it was imported
    /// by a lazyroot that knew of none.
    #[serde(default)]
    pub features: BTreeMap<Feature, Vec<String>>,
}

/// An imported kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is.
    pub bundle: Bundle,
    dir: PathBuf,
}

impl Kernel {
    /// The uncompressed kernel: an arm64 Image, or an x86 ELF with a PVH entry. The file as it was found, an x86 bzImage,
    /// if it has none.
    pub fn boot_file(&self) -> PathBuf {
        let plain = self.dir.join("vmlinux");
        if plain.exists() { plain } else { self.found_file() }
    }

    /// The file as it was found.
    pub fn found_file(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Whether it can do this.
    pub fn has(&self, feature: Feature) -> bool {
        self.bundle.features.contains_key(&feature)
    }

    /// The modules that a guest with these features needs, in load order.
    ///
    /// # Errors
    /// If the bundle is damaged, or a feature is not in it.
    pub fn modules(&self, features: &[Feature]) -> Result<Vec<Module>> {
        let mut wanted: HashSet<&String> = self.bundle.modules.iter().collect();
        for feature in features {
            let modules = self.bundle.features.get(feature).with_context(|| {
                let release = &self.bundle.release;
                format!("kernel {release} has no modules for {feature}: import it again, or use another kernel")
            })?;
            wanted.extend(modules);
        }
        let dir = self.dir.join("modules");
        let order = fs::read_to_string(dir.join("order")).context("the kernel bundle has no module order")?;
        let read = |file: &str| {
            let content = fs::read(dir.join(file)).with_context(|| format!("the kernel bundle lacks {file}"))?;
            Ok(Module { name: module_of(file), content })
        };
        order.lines().filter(|file| wanted.contains(&module_of(file))).map(read).collect()
    }
}

/// The kernels of a home.
pub struct Kernels {
    dir: PathBuf,
    /// Empty files named by the images that were found to bring no kernel. What an image has never changes, and
    /// finding out reads and hashes its whole manifest: most of a launch, and the more files the longer.
    without: PathBuf,
}

/// Where a kernel is imported from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// A Debian package, `linux-image-*.deb`.
    Deb(PathBuf),
    /// A folder with a root file system, or a part of one that has the modules.
    Dir(PathBuf),
    /// An image in the store that brings its own kernel, as bootc images do.
    Image(String),
    /// A podman machine: the kernel that it runs. Its name, or podman's default machine.
    PodmanMachine(Option<String>),
}

impl std::str::FromStr for KernelSource {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("deb", path)) => Ok(Self::Deb(path.into())),
            Some(("dir", path)) => Ok(Self::Dir(path.into())),
            Some(("image", name)) => Ok(Self::Image(name.into())),
            Some(("podman-machine", name)) => Ok(Self::PodmanMachine(Some(name.into()))),
            None if text == "podman-machine" => Ok(Self::PodmanMachine(None)),
            _ if text.ends_with(".deb") => Ok(Self::Deb(text.into())),
            _ if Path::new(text).is_dir() => Ok(Self::Dir(text.into())),
            _ => {
                bail!("'{text}' is no source of a kernel: use deb:PATH, dir:PATH, image:NAME or podman-machine[:NAME]")
            }
        }
    }
}

/// Of a kernel in a Debian package, the `wanted` modules (name, and what for) that are not built in, dependencies
/// first. For guests that are not lazyroot's own, such as those it is compared with.
///
/// # Errors
/// If the package cannot be read, or the kernel lacks something.
pub fn modules_of_deb(path: &Path, wanted: &[(&str, &str)]) -> Result<Vec<Module>> {
    let files = TarFiles::of_deb(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, modules_dir) = find_release(&files)?;
    module_tree(&files, &modules_dir)?.closure(wanted)
}

/// Files among which a kernel is looked for, by paths relative to a root.
trait KernelFiles {
    /// Names in a folder; empty if there is no such folder.
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>>;
    /// A file's content.
    fn read(&self, path: &str) -> Result<Vec<u8>>;
    /// Whether there is such a file.
    fn has(&self, path: &str) -> bool;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
}

impl Kernels {
    /// The kernels of this home.
    pub fn open(home: &Home) -> Result<Self> {
        Ok(Self { dir: home.data_dir("kernels")?, without: home.data_dir("cache/without-kernel")? })
    }

    /// Imports a kernel; importing the same again changes nothing.
    ///
    /// # Errors
    /// If there is no kernel there, or it lacks what a guest needs; nothing is kept then.
    pub fn import(&self, source: &KernelSource, store: impl FnOnce() -> Result<Store>) -> Result<Kernel> {
        match source {
            KernelSource::Deb(path) => {
                let files = TarFiles::of_deb(path).with_context(|| format!("cannot read {}", path.display()))?;
                self.import_files(&files, &format!("deb:{}", path.display()))
            }
            KernelSource::Dir(path) => {
                ensure!(path.is_dir(), "there is no folder {}", path.display());
                self.import_files(&DirFiles(path), &format!("dir:{}", path.display()))
            }
            KernelSource::PodmanMachine(name) => {
                let machine = PodmanMachine::inspect(name.as_deref())?;
                let files = machine.read_kernel(|tar| TarFiles::read(tar))?;
                self.import_files(&files, &format!("podman-machine:{}", machine.name))
            }
            KernelSource::Image(name) => {
                let store = store()?;
                let image = store.resolve(name)?;
                let kernel = self.import_files(&ImageFiles::open(&store, &image)?, &format!("image:{}", image.id));
                kernel.with_context(|| format!("image {name}"))
            }
        }
    }

    /// The kernel that an image brings itself (`/usr/lib/modules/*/vmlinuz`, or a UKI), imported if it was not before.
    pub fn of_image(&self, store: &Store, image: &Image) -> Result<Option<Kernel>> {
        let source = format!("image:{}", image.id);
        if let Some(kernel) = self.list()?.into_iter().find(|kernel| kernel.bundle.source == source) {
            return Ok(Some(kernel));
        }
        let without = self.without.join(image.id.to_hex());
        if without.exists() {
            return Ok(None);
        }
        let files = ImageFiles::open(store, image)?;
        let mut releases = files.list("usr/lib/modules")?.into_iter();
        let beside_modules = releases.any(|(release, _)| files.has(&format!("usr/lib/modules/{release}/vmlinuz")));
        if !beside_modules && ukis(&files)?.is_empty() {
            // Only saves time: a cache that cannot be written costs the next launch another look.
            let _ = File::create(&without);
            return Ok(None);
        }
        let kernel = self.import_files(&files, &source).context("the image's own kernel")?;
        Ok(Some(kernel))
    }

    /// Forgets what is remembered of images that `is_there` does not know; how many those were.
    ///
    /// # Errors
    /// If the memory cannot be read or written.
    pub fn forget_images(&self, is_there: impl Fn(&str) -> bool) -> Result<u64> {
        let mut forgotten = 0;
        for entry in fs::read_dir(&self.without)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&is_there) {
                fs::remove_file(entry.path())?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// All imported kernels, the newest release last.
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let mut kernels = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let dir = entry?.path();
            // A folder without a readable bundle.json is an import that did not end; the next one replaces it.
            let bundle = fs::read(dir.join("bundle.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(bundle) = bundle {
                kernels.push(Kernel { bundle, dir });
            }
        }
        kernels.sort_by_key(|kernel| (sort_key(&kernel.bundle.release), kernel.bundle.release.clone()));
        Ok(kernels)
    }

    /// The kernel of this release.
    ///
    /// # Errors
    /// If there is none; says which there are.
    pub fn get(&self, release: &str) -> Result<Kernel> {
        let kernels = self.list()?;
        let known: Vec<_> = kernels.iter().map(|kernel| kernel.bundle.release.clone()).collect();
        let found = kernels.into_iter().find(|kernel| kernel.bundle.release == release);
        found.with_context(|| format!("there is no kernel {release}; 'lazyroot kernel ls' has: {}", known.join(", ")))
    }

    /// The newest kernel for an architecture.
    ///
    /// # Errors
    /// If there is none; says how to import one.
    pub fn newest(&self, arch: Arch) -> Result<Kernel> {
        let mut kernels = self.list()?;
        kernels.retain(|kernel| kernel.bundle.arch == arch);
        kernels.pop().with_context(|| {
            format!(
                "there is no kernel for {arch} yet: import one with 'lazyroot kernel import SOURCE', from a \
                 linux-image package, a folder, a podman machine, or an image that brings its own"
            )
        })
    }

    /// Removes a kernel.
    pub fn remove(&self, release: &str) -> Result<()> {
        let kernels = self.list()?;
        let found = kernels.iter().find(|kernel| kernel.bundle.release == release);
        let kernel = found.with_context(|| format!("there is no kernel {release}: see 'lazyroot kernel ls'"))?;
        fs::remove_dir_all(&kernel.dir).with_context(|| format!("cannot remove {}", kernel.dir.display()))
    }

    fn import_files(&self, files: &dyn KernelFiles, source: &str) -> Result<Kernel> {
        let (release, modules_dir) = find_release(files)?;
        let (path, vmlinuz) = find_kernel(files, &release)?;
        let kernel = unwrap(&vmlinuz).with_context(|| format!("cannot boot {path}"))?;

        let configs = [format!("boot/config-{release}"), format!("{modules_dir}/config")];
        let config = configs.iter().find_map(|path| files.read(path).ok());
        let config = config.map(|text| String::from_utf8_lossy(&text).into_owned());
        let tree = module_tree(files, &modules_dir)?;
        let mut modules = tree.needed(&release, config.as_deref())?;
        let needed = modules.iter().map(|module| module.name.clone()).collect();
        let mut features = BTreeMap::new();
        for feature in Feature::ALL {
            let Some(more) = tree.optional(feature) else { continue };
            features.insert(feature, more.iter().map(|module| module.name.clone()).collect());
            for module in more {
                if modules.iter().all(|known| known.name != module.name) {
                    modules.push(module);
                }
            }
        }

        let mut hasher = verity::LeafHasher::new(Algorithm::Sha256);
        hasher.update(&vmlinuz);
        modules.iter().for_each(|module| hasher.update(&module.content));
        let id: ObjectId = hasher.finish().0;
        let bundle = Bundle {
            release: release.clone(),
            arch: kernel.format.arch(),
            source: source.to_owned(),
            id: id.to_hex(),
            modules: needed,
            features,
        };

        let fresh = tempfile::Builder::new().prefix(".import-").tempdir_in(&self.dir)?;
        let write = |name: &str, content: &[u8]| {
            let path = fresh.path().join(name);
            // On disk before the bundle is named: after a power cut it is whole or not there.
            let written =
                File::create(&path).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
            written.with_context(|| format!("cannot write {}", path.display()))
        };
        fs::create_dir(fresh.path().join("modules"))?;
        write("vmlinuz", &vmlinuz)?;
        if kernel.format != Format::BzImage {
            write("vmlinux", &kernel.bytes)?;
        }
        let mut order = String::new();
        for module in &modules {
            let name = module.file_name();
            write(&format!("modules/{name}"), &module.content)?;
            order += &name;
            order.push('\n');
        }
        write("modules/order", order.as_bytes())?;
        write("bundle.json", &serde_json::to_vec_pretty(&bundle)?)?;

        // An image's own kernel may have the release of another: its folder is named by its content as well.
        let name = if source.starts_with("image:") { format!("{release}-{}", &bundle.id[..12]) } else { release };
        let dir = self.dir.join(name);
        // Moved aside first, so that a launch meanwhile finds the old one or the new one, whole.
        let old = tempfile::Builder::new().prefix(".old-").tempdir_in(&self.dir)?;
        if dir.exists() {
            rename_unsynced(&dir, old.path()).with_context(|| format!("cannot replace {}", dir.display()))?;
        }
        rename_unsynced(fresh.keep(), &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Kernel { bundle, dir })
    }
}

/// The name of a bundle's module file.
fn module_of(file: &str) -> String {
    file.strip_suffix(".ko").unwrap_or(file).to_owned()
}

/// Releases compare by their numbers: 6.9 comes before 6.12.
fn sort_key(release: &str) -> Vec<u64> {
    let numbers = release.split(|character: char| !character.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// The one release among the files, and the folder of its modules.
fn find_release(files: &dyn KernelFiles) -> Result<(String, String)> {
    for parent in ["usr/lib/modules", "lib/modules"] {
        let mut releases: Vec<String> = Vec::new();
        for (name, _) in files.list(parent)? {
            if version(&name).is_some() && !files.list(&format!("{parent}/{name}/kernel"))?.is_empty() {
                releases.push(name);
            }
        }
        releases.sort_by_key(|release| sort_key(release));
        if let Some(release) = releases.pop() {
            let dir = format!("{parent}/{release}");
            return Ok((release, dir));
        }
    }
    bail!("there are no kernel modules in usr/lib/modules or lib/modules")
}

/// Where the UKIs of an image are that has its kernel in one, as bootc makes them.
const UKIS: &str = "boot/EFI/Linux";

/// The kernel of a release: its path, and the file as it was found.
fn find_kernel(files: &dyn KernelFiles, release: &str) -> Result<(String, Vec<u8>)> {
    let candidates = [
        format!("usr/lib/modules/{release}/vmlinuz"),
        format!("boot/vmlinuz-{release}"),
        format!("lib/modules/{release}/vmlinuz"),
    ];
    if let Some(path) = candidates.iter().find(|path| files.has(path)) {
        return Ok((path.clone(), files.read(path)?));
    }
    let mut others = Vec::new();
    for path in ukis(files)? {
        let file = files.read(&path)?;
        match uki_release(&file) {
            // One that does not say is taken at its name, which bootc makes of the release.
            None if path.contains(release) => return Ok((path, file)),
            Some(found) if found == release => return Ok((path, file)),
            found => others.push(format!("{path} ({})", found.unwrap_or_else(|| "which does not say".to_owned()))),
        }
    }
    let others = if others.is_empty() { String::new() } else { format!("; of other releases: {}", others.join(", ")) };
    bail!("there is no kernel of release {release}: {}, {UKIS}/*.efi{others}", candidates.join(", "))
}

fn ukis(files: &dyn KernelFiles) -> Result<Vec<String>> {
    let names = files.list(UKIS)?.into_iter().map(|(name, _)| name);
    Ok(names.filter(|name| name.ends_with(".efi")).map(|name| format!("{UKIS}/{name}")).collect())
}

fn module_tree<'a>(files: &'a dyn KernelFiles, modules_dir: &str) -> Result<ModuleTree<'a>> {
    let mut paths = Vec::new();
    walk(files, modules_dir, &mut paths)?;
    let builtin = files.read(&format!("{modules_dir}/modules.builtin")).unwrap_or_default();
    Ok(ModuleTree::new(paths, &String::from_utf8_lossy(&builtin), |path| files.read(path)))
}

fn walk(files: &dyn KernelFiles, dir: &str, paths: &mut Vec<String>) -> Result<()> {
    for (name, kind) in files.list(dir)? {
        let path = format!("{dir}/{name}");
        match kind {
            Kind::Folder => walk(files, &path, paths)?,
            Kind::File => paths.push(path),
        }
    }
    Ok(())
}

/// A folder on this machine.
struct DirFiles<'a>(&'a Path);

impl KernelFiles for DirFiles<'_> {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let Ok(entries) = fs::read_dir(self.0.join(dir)) else { return Ok(Vec::new()) };
        entries
            .map(|entry| {
                let entry = entry?;
                let kind = if entry.file_type()?.is_dir() { Kind::Folder } else { Kind::File };
                Ok((entry.file_name().to_string_lossy().into_owned(), kind))
            })
            .collect()
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.0.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn has(&self, path: &str) -> bool {
        self.0.join(path).is_file()
    }
}

/// An image in the store.
struct ImageFiles<'a> {
    store: &'a Store,
    image: &'a Image,
    tree: crate::store::Tree,
}

impl<'a> ImageFiles<'a> {
    fn open(store: &'a Store, image: &'a Image) -> Result<Self> {
        Ok(Self { store, image, tree: image.tree()? })
    }
}

impl KernelFiles for ImageFiles<'_> {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let entries = self.tree.list(format!("/{dir}"))?.unwrap_or_default();
        let kind = |node| if matches!(node, crate::store::Node::Directory) { Kind::Folder } else { Kind::File };
        Ok(entries.into_iter().map(|(name, node)| (name.to_string_lossy().into_owned(), kind(node))).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.image.read_file(self.store.source().as_ref(), format!("/{path}"))
    }

    fn has(&self, path: &str) -> bool {
        self.tree.exists(format!("/{path}"))
    }
}

/// The files of an archive, in memory.
struct TarFiles(BTreeMap<String, Vec<u8>>);

impl TarFiles {
    /// Those of a Debian package: its `data.tar`, as deb(5) has it.
    fn of_deb(path: &Path) -> Result<Self> {
        let mut archive = ar::Archive::new(File::open(path)?);
        while let Some(member) = archive.next_entry() {
            let member = member.context("it is no Debian package")?;
            let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
            let reader: Box<dyn Read> = match name.trim_end_matches('/') {
                "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new(member)),
                "data.tar.zst" => Box::new(zstd::Decoder::new(member)?),
                "data.tar.gz" => Box::new(flate2::read::GzDecoder::new(member)),
                "data.tar" => Box::new(member),
                _ => continue,
            };
            return Self::read(reader);
        }
        bail!("it has no data.tar: is it a Debian package?")
    }

    fn read(reader: impl Read) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(reader).entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
        Ok(Self(files))
    }
}

impl KernelFiles for TarFiles {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let prefix = format!("{dir}/");
        let mut names = BTreeMap::new();
        for rest in self.0.keys().filter_map(|path| path.strip_prefix(&prefix)) {
            match rest.split_once('/') {
                Some((folder, _)) => names.insert(folder.to_owned(), Kind::Folder),
                None => names.insert(rest.to_owned(), Kind::File),
            };
        }
        Ok(names.into_iter().collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.0.get(path).cloned().with_context(|| format!("there is no {path} in the archive"))
    }

    fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}
