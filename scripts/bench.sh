#!/bin/sh
# Runs the benchmarks on the demo image; as root because they mount and drop caches.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

LAZYROOT_TEST_ROOTFS=$demo/rootfs
LAZYROOT_TEST_KERNEL_DEB=$(ls "$demo"/linux-image-*.deb)
LAZYROOT_TEST_BIN=$target/release/lazyroot
export LAZYROOT_TEST_ROOTFS LAZYROOT_TEST_KERNEL_DEB LAZYROOT_TEST_BIN

cargo build --release --locked -p lazyroot-tests --bin bench
exec sh scripts/as-root.sh "$target/release/bench" "$target/bench"
