//! `lazyroot image`: bringing images into the store, looking at them, naming and removing them.
//!
//! The options, the dispatch and the printing. What images are and how they are read and written is in `crate::store`;
//! files inside an image are shown by the verbs of `lazyroot store`.

mod diff;
mod history;
mod inspect;
mod list;

use std::process::ExitCode;

use anyhow::{Result, anyhow};

use self::diff::diff;
use self::history::history;
use self::inspect::inspect;
use self::list::list;
use crate::cli::context::Context;
use crate::cli::output::{Format, print};
use crate::cli::upstreams::UpstreamArgs;
use crate::complain::complain;
use crate::store::{Progress, Rehash, Removal, Source, Store};

/// What to do with images.
#[derive(clap::Subcommand)]
pub enum ImageCommand {
    /// Bring an image into the store; prints its digest and name
    Import {
        /// containers-storage:NAME, docker://REF, oci:PATH[:TAG], oci-archive:PATH[:TAG] or dir:PATH
        source: Source,
        /// The image's name in the store [default: made from SOURCE]
        #[arg(long)]
        name: Option<String>,
        /// Read everything again, also what did not change since an import before
        #[arg(long)]
        rehash: bool,
    },
    /// List images
    Ls {
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what is in an image, as JSON
    Inspect {
        /// Name, digest, or the first 12 or more hex digits of the digest
        image: String,
        #[command(flatten)]
        source: UpstreamArgs,
    },
    /// Show how an image was built, the newest step first, as its OCI configuration tells
    History {
        /// Name or digest
        image: String,
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what is different between two images, and what the second needs that the first does not have
    Diff {
        /// The image before
        a: String,
        /// The image after
        b: String,
        /// Show files too of which only the times differ
        #[arg(long)]
        times: bool,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove names, and images with their last name
    Rm {
        /// Names or digests; a digest removes all names of its image
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Give an image one more name
    Tag {
        /// Name or digest
        image: String,
        /// The new name
        name: String,
    },
}

/// Runs `lazyroot image`.
///
/// # Errors
/// If the store cannot be opened or the command fails.
pub fn run(command: ImageCommand, context: &Context) -> Result<ExitCode> {
    let store = Store::open(&context.home, context.store.as_deref())?;
    match command {
        ImageCommand::Import { source, name, rehash } => {
            let rehash = if rehash { Rehash::All } else { Rehash::Changed };
            import(&store, &source, name.as_deref(), rehash)
        }
        ImageCommand::Ls { format } => list(&store, format),
        ImageCommand::Inspect { image, source } => inspect(&source.open(context)?, &image),
        ImageCommand::History { image, format } => history(&store, &image, format),
        ImageCommand::Diff { a, b, times, format } => diff(&store, &a, &b, times, format),
        ImageCommand::Rm { names } => remove(&store, &names),
        ImageCommand::Tag { image, name } => store.tag(&image, &name).map(|()| ExitCode::SUCCESS),
    }
}

fn import(store: &Store, source: &Source, name: Option<&str>, rehash: Rehash) -> Result<ExitCode> {
    let image = store.import_again(source, name, rehash, &Progress::stderr())?;
    print(&format!("{} {}\n", image.id, image.name.unwrap_or_default()))
}

fn remove(store: &Store, names: &[String]) -> Result<ExitCode> {
    let mut failed = 0;
    let mut freed = false;
    let mut text = String::new();
    for name in names {
        match store.remove(name) {
            Ok(Removal::Untagged { remaining }) => {
                text += &format!("untagged {name}; still {}\n", remaining.join(", "))
            }
            Ok(Removal::Image) => {
                freed = true;
                text += &format!("removed {name}\n");
            }
            Err(error) => {
                failed += 1;
                complain(format_args!("{error:#}"));
            }
        }
    }
    if freed {
        complain("objects that no image needs stay until 'lazyroot store gc'");
    }
    print(&text)?;
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        failed => Err(anyhow!("{failed} of {} could not be removed", names.len())),
    }
}
