//! What both ends of lazyroot agree on: object ids, fs-verity trees, the object index and the frames
//! on the wire. No I/O and no async here: every function maps bytes to values or values to bytes, so
//! the host, the guest and a fuzzer use the very same code.
//!
//! `frame` is what guest and host say to each other, with `peer` what two hosts do, `exec` and `service` what runs over
//! streams; `id`, `verity` and `verified` are the checks that turn bytes of anybody into verified ones. The byte-by-byte
//! reference is `docs/src/reference/protocol.md`, the whole is drawn in `docs/src/explanation/architecture.md`.

pub mod boot;
pub mod exec;
pub mod frame;
pub mod id;
pub mod index;
mod lanes;
pub mod peer;
pub mod service;
pub mod settings;
pub mod verified;
pub mod verity;

pub use frame::reads;
pub use id::{Algorithm, ObjectId};
pub use index::ObjectIndex;
pub use verified::{Unverified, Verified};
