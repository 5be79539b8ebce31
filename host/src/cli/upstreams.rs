//! Where a command line's images and objects come from: flags, else `config.toml`.

use anyhow::Result;

use crate::cli::context::Context;
use crate::settings::Settings;
use crate::store::{CacheSize, RemoteImages, Store, UpstreamAddress, UpstreamSpec};
use crate::vm::podman_machine::PODMAN;

/// Options of every verb that reads images which may be elsewhere.
#[derive(clap::Args)]
pub struct UpstreamArgs {
    /// Ask here for images and objects that the store does not have, instead of config.toml's upstreams; may be given
    /// several times, 'none' for nowhere: ssh://[USER@]HOST[:PORT], podman-machine[:NAME], command:COMMAND, unix:PATH,
    /// s3://BUCKET[/PREFIX], file:///PATH
    #[arg(long = "upstream", value_name = "WHERE", value_parser = upstream)]
    upstreams: Vec<Choice>,
    /// Bound of the cache for what comes from there: bytes (500M, 20G), a share of the disk (10%), or 0 for none
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<CacheSize>,
}

#[derive(Clone)]
enum Choice {
    None,
    At(UpstreamAddress),
}

fn upstream(text: &str) -> Result<Choice> {
    match text {
        "none" => Ok(Choice::None),
        text => text.parse().map(Choice::At),
    }
}

/// Where images come from if neither flags nor file say: on a Mac, the podman machine has them.
fn default_upstreams(system: &str, has_podman: impl Fn() -> bool) -> Vec<UpstreamSpec> {
    match system {
        "macos" if has_podman() => vec![UpstreamSpec::new(UpstreamAddress::PodmanMachine(None))],
        _ => vec![],
    }
}

/// The upstreams of a `config.toml` that names these.
pub fn configured(upstreams: Option<Vec<UpstreamSpec>>) -> Vec<UpstreamSpec> {
    upstreams.unwrap_or_else(|| default_upstreams(std::env::consts::OS, || PODMAN.find().is_ok()))
}

impl UpstreamArgs {
    /// The store with the upstreams that were asked for.
    ///
    /// # Errors
    /// If `config.toml` makes no sense, or the store or the cache cannot be used.
    pub fn open(&self, context: &Context) -> Result<Store> {
        let store = Store::open(&context.home, context.store.as_deref())?;
        let settings = Settings::load()?;
        let specs = self.specs(configured(settings.upstreams));
        if specs.is_empty() {
            return Ok(store);
        }
        let size = self.cache_size.unwrap_or(settings.cache.size);
        Ok(store.with_remote_images(RemoteImages::open(&context.home, &specs, size)?))
    }

    /// A flag that names an upstream of the file has that one's other settings.
    fn specs(&self, configured: Vec<UpstreamSpec>) -> Vec<UpstreamSpec> {
        if self.upstreams.is_empty() {
            return configured;
        }
        let chosen = self.upstreams.iter().filter_map(|choice| match choice {
            Choice::None => None,
            Choice::At(url) => Some(url),
        });
        let spec = |url: &UpstreamAddress| {
            let known = configured.iter().find(|spec| spec.url == *url);
            known.cloned().unwrap_or_else(|| UpstreamSpec::new(url.clone()))
        };
        chosen.map(spec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_with_podman_asks_its_machine_unless_told_otherwise() {
        let machine = UpstreamSpec::new("podman-machine".parse().unwrap());
        assert_eq!(default_upstreams("macos", || true), std::slice::from_ref(&machine));
        assert_eq!(default_upstreams("macos", || false), []);
        assert_eq!(default_upstreams("linux", || true), []);
        let args = |upstreams: &[&str]| UpstreamArgs {
            upstreams: upstreams.iter().map(|text| upstream(text).unwrap()).collect(),
            cache_size: None,
        };
        assert_eq!(args(&[]).specs(vec![machine.clone()]), std::slice::from_ref(&machine));
        assert_eq!(args(&["none"]).specs(vec![machine]), []);
    }
}
