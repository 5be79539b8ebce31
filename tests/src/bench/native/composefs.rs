//! A local composefs mount: the kernel reads the store's objects by itself.

use std::path::{Path, PathBuf};

use anyhow::Result;
use composefs::fsverity::Sha256HashValue;
use composefs::mount::MountOptions;
use composefs::repository::Repository;

use super::{Inputs, Mounted, System};

/// The system's name.
pub const NAME: &str = "composefs";

struct Composefs {
    repository: Repository<Sha256HashValue>,
    image: String,
}

/// Opens the repository.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let mut repository = Repository::<Sha256HashValue>::open_path(rustix::fs::CWD, inputs.store.path())?;
    repository.set_insecure();
    // By digest: by name composefs demands fs-verity of the file system.
    Ok(Box::new(Composefs { repository, image: inputs.image.id.to_hex() }))
}

impl System for Composefs {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        self.repository.mount_at(&self.image, at, &MountOptions::default())?;
        Ok(Box::new(Mount(at.to_owned())))
    }

    fn about(&self) -> String {
        "the kernel's own, of the same store; nothing is verified".into()
    }
}

struct Mount(PathBuf);

impl Mounted for Mount {}

impl Drop for Mount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty()).expect("the ceiling unmounts");
    }
}
