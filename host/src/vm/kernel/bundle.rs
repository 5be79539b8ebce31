//! Kernel bundles: a kernel with just the modules that a guest needs, imported once and booted many times.
//!
//! A bundle is a folder named by its release: `vmlinuz` as found, `vmlinux` if an uncompressed ELF could be taken
//! out of it, `modules/` unpacked with their load order in `order`, and `bundle.json`. How one is made is in
//! [`super::import`].

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::modules::{Feature, Module};

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

/// The form in which a hypervisor takes a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// Uncompressed, where it could be: an arm64 Image, or an x86 ELF with a PVH entry.
    Uncompressed,
    /// The file as it was found.
    AsFound,
}

/// An imported kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is.
    pub bundle: Bundle,
    pub(super) dir: PathBuf,
}

impl Kernel {
    /// Its file in this form.
    pub fn file(&self, form: KernelForm) -> PathBuf {
        match form {
            KernelForm::Uncompressed => self.boot_file(),
            KernelForm::AsFound => self.found_file(),
        }
    }

    /// The uncompressed kernel: an arm64 Image, or an x86 ELF with a PVH entry. The file as it was found, an x86 bzImage,
    /// if it has none.
    pub fn boot_file(&self) -> PathBuf {
        let plain = self.dir.join("vmlinux");
        if plain.exists() { plain } else { self.found_file() }
    }

    /// The file as it was found.
    fn found_file(&self) -> PathBuf {
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
        let mut names: HashSet<&String> = self.bundle.modules.iter().collect();
        for feature in features {
            let modules = self.bundle.features.get(feature).with_context(|| {
                let release = &self.bundle.release;
                format!("kernel {release} has no modules for {feature}: import it again, or use another kernel")
            })?;
            names.extend(modules);
        }
        let dir = self.dir.join("modules");
        let order = fs::read_to_string(dir.join("order")).context("the kernel bundle has no module order")?;
        let read = |file: &str| {
            let content = fs::read(dir.join(file)).with_context(|| format!("the kernel bundle lacks {file}"))?;
            Ok(Module { name: module_of(file), content })
        };
        order.lines().filter(|file| names.contains(&module_of(file))).map(read).collect()
    }
}

/// The kernels of a home.
pub struct Kernels {
    pub(super) dir: PathBuf,
    /// Empty files named by the images that were found to bring no kernel. What an image has never changes, and
    /// finding out reads and hashes its whole manifest: most of a launch, and the more files the longer.
    pub(super) without: PathBuf,
}

impl Kernels {
    /// The kernels of this home.
    pub fn open(home: &Home) -> Result<Self> {
        Ok(Self { dir: home.data_dir("kernels")?, without: home.data_dir("cache/without-kernel")? })
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
}

/// The name of a bundle's module file.
fn module_of(file: &str) -> String {
    file.strip_suffix(".ko").unwrap_or(file).to_owned()
}

/// Releases compare by their numbers: 6.9 comes before 6.12.
pub(super) fn sort_key(release: &str) -> Vec<u64> {
    let numbers = release.split(|character: char| !character.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}
