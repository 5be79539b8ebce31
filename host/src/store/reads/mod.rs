//! What guests read of an image, kept beside it: the boot profile, merged over runs, and the trace of the last run.
//!
//! Both are files in lazyroot's own folder of a store. The types of a single read are in `lazyroot_proto::reads`; reads are
//! recorded in `serve`.

pub(in crate::store) mod boot_profile;
pub(in crate::store) mod trace;
