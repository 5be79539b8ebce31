//! `lazyroot store push`: sending an image to a bucket.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::output::{Format, print};
use crate::cli::upstreams::UpstreamArgs;
use crate::human::size;
use crate::store::{Progress, UpstreamAddress};

/// Send an image to a bucket, for other hosts to use as --upstream
///
/// Sends what is not there yet. An interrupted push goes on where it was when it is run again. Endpoint and credentials
/// come from the environment: AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...
#[derive(clap::Args)]
pub struct PushArgs {
    /// Where to: s3://BUCKET[/PREFIX] or file:///PATH
    to: UpstreamAddress,
    /// Image to send: a name, or its digest
    image: String,
    /// How to say what was sent
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    source: UpstreamArgs,
}

/// Sends the image and says what that took.
///
/// # Errors
/// If there is no such image, an object of it is damaged, or the bucket cannot be written.
pub fn run(args: &PushArgs, context: &Context) -> Result<ExitCode> {
    let store = args.source.open(context)?;
    let image = store.resolve(&args.image)?;
    let pushed = store.push(&args.to, &image, &Progress::stderr())?;
    match args.format {
        Format::Json => print(&(serde_json::to_string(&pushed)? + "\n")),
        Format::Table => print(&format!(
            "{} objects sent, {}; {} were there, {}\n",
            pushed.objects,
            size(pushed.bytes),
            pushed.present,
            size(pushed.present_bytes)
        )),
    }
}
