//! From `lazyroot run` to the start of the hypervisor: it must not depend on the size of the image.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::inputs::{IMAGE, Inputs, lazyroot};
use super::plan::Plan;
use super::report::{Cell, Report, cache};
use super::vm;
use crate::{data, rootfs};

/// The name of this part.
pub const PART: &str = "launch";

const WORKLOAD: &str = "launch to hypervisor start";
const SMALL: &str = "lazyroot, 0.6 GB image";
const LARGE: &str = "lazyroot, 2 GB image";

/// The large image's name in the benchmark's store.
const LARGE_IMAGE: &str = "launch-large";

/// Files of 1 MiB that make the large image.
const MORE_FILES: u64 = 1800;

/// What the command in the VM says.
const SAID: &str = "up";

/// Launches a small and a large image in turn.
///
/// # Errors
/// If an image cannot be made, or a launch fails twice.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    import_large(&inputs.work)?;
    report.compare(PART, SMALL);
    // Whatever is cached per image or kernel is, after this.
    for image in [IMAGE, LARGE_IMAGE] {
        vm::launch(image, &["echo", SAID], SAID)?;
    }
    let mut images = [(SMALL, IMAGE), (LARGE, LARGE_IMAGE)];
    let mut most_written = [0, 0];
    for _ in 0..plan.samples {
        fastrand::shuffle(&mut images);
        for (system, image) in images {
            let cell = cell(system);
            let said = vm::twice_at_most(report, &cell, || vm::launch(image, &["echo", SAID], SAID))?;
            let most = &mut most_written[usize::from(system == LARGE)];
            *most = said.disk_bytes_written.max(*most);
            report.add(&cell, said.hypervisor_started.as_secs_f64(), None);
        }
    }
    for (system, most) in [SMALL, LARGE].into_iter().zip(most_written) {
        report.note(&cell(system), &format!("at most {} KiB written to the host's disk", most >> 10));
    }
    Ok(())
}

fn cell(system: &str) -> Cell {
    Cell::new(PART, WORKLOAD, cache::WARM, system)
}

/// Makes the large image: the test's Debian root and more.
fn import_large(work: &Path) -> Result<()> {
    if lazyroot(&["image", "inspect", LARGE_IMAGE]).is_ok() {
        return Ok(());
    }
    let tree = work.join("large-tree");
    let status = Command::new("cp").arg("-a").arg(rootfs()).arg(&tree).status()?;
    ensure!(status.success(), "cannot copy the root");
    data::grow(&tree, MORE_FILES)?;
    lazyroot(&["image", "import", &format!("dir:{}", tree.display()), "--name", LARGE_IMAGE])?;
    fs::remove_dir_all(tree)?;
    Ok(())
}
