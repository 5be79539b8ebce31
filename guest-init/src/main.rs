//! guest-init.
fn main() {}
