//! `lazyroot kernel`: the kernels that VMs boot.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::output::{Format, print};
use crate::store::Store;
use crate::vm::kernel::bundle::Kernels;
use crate::vm::kernel::import::KernelSource;

/// Kernels that VMs boot
#[derive(clap::Subcommand)]
pub enum KernelCommand {
    /// Import a kernel and the modules that a guest needs
    Import {
        /// deb:PATH (or a path that ends in .deb), dir:PATH (a root file system), or image:NAME (an image that
        /// brings its own kernel), or podman-machine[:NAME] (the kernel that a podman machine runs)
        source: KernelSource,
    },
    /// List the imported kernels
    Ls {
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove kernels
    Rm {
        /// Releases, as 'lazyroot kernel ls' shows them
        #[arg(required = true)]
        releases: Vec<String>,
    },
}

/// Runs a kernel verb.
pub fn run(command: KernelCommand, context: &Context) -> Result<ExitCode> {
    let kernels = Kernels::open(&context.home)?;
    match command {
        KernelCommand::Import { source } => {
            let kernel = kernels.import(&source, || Store::open(&context.home, context.store.as_deref()))?;
            print(&format!("{}\n", kernel.bundle.release))
        }
        KernelCommand::Ls { format } => print(&list(&kernels, format)?),
        KernelCommand::Rm { releases } => {
            releases.iter().try_for_each(|release| kernels.remove(release))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(kernels: &Kernels, format: Format) -> Result<String> {
    let bundles: Vec<_> = kernels.list()?.into_iter().map(|kernel| kernel.bundle).collect();
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(&bundles)? + "\n");
    }
    let width = bundles.iter().map(|bundle| bundle.release.len()).max().unwrap_or(0).max("RELEASE".len());
    let mut text = format!("{:width$}  {:8}  SOURCE\n", "RELEASE", "ARCH");
    for bundle in &bundles {
        text += &format!("{:width$}  {:8}  {}\n", bundle.release, bundle.arch, bundle.source);
    }
    Ok(text)
}
