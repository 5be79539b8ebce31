//! Which kernel a launch boots.

use anyhow::{Result, ensure};

use crate::home::Home;
use crate::store::{Image, Store};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Kernel, Kernels};
use crate::vm::kernel::import::KernelSource;

/// The asked-for bundle, the image's own kernel, or the newest bundle for the image's architecture.
pub(super) fn choose_kernel(home: &Home, store: &Store, image: &Image, release: Option<&str>) -> Result<Kernel> {
    let kernels = Kernels::open(home)?;
    if release.is_none()
        && let Some(kernel) = kernels.of_image(store, image)?
    {
        return Ok(kernel);
    }
    let arch = Arch::of_image(home, image)?;
    let Some(release) = release else {
        return match kernels.newest(arch) {
            // A Mac has no Linux kernel but the one in podman's machine, where the image most likely is from.
            Err(none) if cfg!(target_os = "macos") && arch == Arch::HOST => {
                let imported = kernels.import(&KernelSource::PodmanMachine(None), || unreachable!("no image is read"));
                imported.map_err(|error| none.context(format!("{error:#}")))
            }
            found => found,
        };
    };
    let kernel = kernels.get(release)?;
    let of_kernel = kernel.bundle.arch;
    ensure!(of_kernel == arch, "kernel {release} is for {of_kernel}, and the image for {arch}");
    Ok(kernel)
}
