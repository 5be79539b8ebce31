//! Where images and objects come from: the composefs repository, importing into it, and looking inside.

mod source;

pub use source::{ObjectError, ObjectSource};
