//! The images that a server has for its guests: which there are (`catalog`), one of them being served (`image`), and what
//! is kept of its boots (`boot_history`).
//!
//! A session may read the objects of its own image and nothing else; sessions themselves are in `session`. What an image
//! is and where its objects come from is in `crate::store`; nothing here looks into a manifest or knows an upstream.

mod boot_history;
mod catalog;
mod image;

pub use boot_history::{BootHistory, ProfileUse};
pub use catalog::Catalog;
pub use image::ServedImage;
