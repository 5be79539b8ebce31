//! Where images and objects come from: the composefs repository, importing into it, and looking inside.

mod cache;
mod chain;
#[cfg(target_os = "linux")]
mod composefs;
mod config;
mod elsewhere;
mod files;
mod image;
mod import;
mod manifest;
mod name;
mod nowait;
#[cfg(target_os = "linux")]
mod podman;
mod profile;
mod progress;
mod recent;
mod repo;
mod repository;
mod source;
mod trace;
mod upstream;

pub use cache::CacheSize;
#[cfg(target_os = "linux")]
pub use composefs::serve_if_storage_helper;
pub use config::ImageConfig;
pub use elsewhere::Elsewhere;
pub use image::{Image, ImageSummary};
pub use import::Source;
pub use manifest::{Census, Content, Node, Tree};
pub use name::{ImageName, ParseNameError};
pub use profile::{BOOT, Entry, Profile, ProfileFile};
pub use progress::Progress;
pub use repo::{Removed, Store};
pub use repository::RepositorySource;
pub use source::{Object, ObjectError, ObjectSource};
pub use trace::{Milestone, Trace, TraceFile};
pub use upstream::{
    Address as UpstreamAddress, Compression as UpstreamCompression, Pushed, Spec as UpstreamSpec, Traffic,
};
