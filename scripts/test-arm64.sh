#!/bin/sh
# Boots arm64 guests, emulated unless this machine is one.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

give_tests_their_inputs
LAZYROOT_TEST_ARM64_ROOTFS=$demo_arm64/rootfs
LAZYROOT_TEST_ARM64_KERNEL_DEB=$(ls "$demo_arm64"/linux-image-*.deb)
export LAZYROOT_TEST_ARM64_ROOTFS LAZYROOT_TEST_ARM64_KERNEL_DEB
# Both guest-inits are beside lazyroot: it has to find the right one by itself.
unset LAZYROOT_GUEST_INIT

cargo test --release --locked -p lazyroot-tests --features arm64 --test arm64 \
    --config "target.'cfg(unix)'.runner = ['sh', '$PWD/scripts/as-root.sh']" -- "$@"
