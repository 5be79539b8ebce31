#!/bin/sh
# Builds lazyroot for this machine and guest-init as one static binary, and puts guest-init where lazyroot looks
# first: beside itself.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The whole of every initramfs is to stay below 3 MiB compressed.
guest_init_limit=$((3 * 1024 * 1024))

cargo build --release --locked -p lazyroot
[ "$(uname)" = Linux ] || exit 0 # guest-init for a VM on a Mac is built on Linux

# With --target, RUSTFLAGS reach only what is built for the guest: build scripts and proc macros stay dynamic.
RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" cargo build --profile guest --locked \
    -p lazyroot-guest --bin guest-init --target "$triple" --target-dir "$target/guest"

if LC_ALL=C readelf -lW "$LAZYROOT_GUEST_INIT" | grep -q INTERP; then
    fail "$LAZYROOT_GUEST_INIT is not static: nothing in an initramfs could load it"
fi
size=$(wc -c <"$LAZYROOT_GUEST_INIT")
[ "$size" -le "$guest_init_limit" ] || fail "guest-init has $size bytes, more than $guest_init_limit"

# `install` makes a new file: `cargo test` may have left a hard link to its own, dynamic guest-init there.
cmp -s "$LAZYROOT_GUEST_INIT" "$target/release/guest-init" ||
    install -m 755 "$LAZYROOT_GUEST_INIT" "$target/release/guest-init"
