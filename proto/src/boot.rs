//! What the host and the guest's init must both know about a boot.

/// The line that a probe's guest writes to its console: this hypervisor boots this kernel and our init.
pub const PROBE_MARKER: &str = "lazyroot: probe ok";

/// Programs that an image may bring as its init, in the order in which the kernel and distributions try them.
pub const INITS: &[&str] =
    &["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"];

/// The serial number of the disk that holds a guest's upper layer.
pub const UPPER_DISK: &str = "lazyroot-upper";

/// How large that disk may be, in bytes: the guest formats it, and can make no other file system.
pub const UPPER_DISK_BYTES: std::ops::RangeInclusive<u64> = 128 << 20..=4 << 40;
