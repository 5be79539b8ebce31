//! Importing kernels: from a Debian package, a folder, an image in the store, or a podman machine.
//!
//! A kernel and its modules are looked for among [`KernelFiles`], wherever those are; the bundle is written whole, and
//! then gets its name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{Algorithm, ObjectId, verity};

use crate::durable::rename_unsynced;
use crate::store::{Image, Store};
use crate::vm::kernel::bundle::{Bundle, Kernel, Kernels, sort_key};
use crate::vm::kernel::files::{DirFiles, ImageFiles, KernelFiles, Kind, TarFiles};
use crate::vm::kernel::modules::{Feature, Module, ModuleTree, version};
use crate::vm::kernel::unwrap::{Format, uki_release, unwrap};
use crate::vm::podman_machine::PodmanMachine;

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

impl Kernels {
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

/// Of a kernel in a Debian package, the `modules` (name, and what for) that are not built in, dependencies
/// first. For guests that are not lazyroot's own, such as those it is compared with.
///
/// # Errors
/// If the package cannot be read, or the kernel lacks something.
pub fn modules_of_deb(path: &Path, modules: &[(&str, &str)]) -> Result<Vec<Module>> {
    let files = TarFiles::of_deb(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, modules_dir) = find_release(&files)?;
    module_tree(&files, &modules_dir)?.closure(modules)
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
