//! Programs that run beside a hypervisor.

pub mod gvproxy;
pub mod virtiofsd;
