#!/bin/sh
# Runs a command as root with the variables that lazyroot and its tests read; sudo would drop them.
set -eu
[ "$(id -u)" = 0 ] && exec "$@"
exec sudo env \
    LAZYROOT_TEST_ROOTFS="${LAZYROOT_TEST_ROOTFS-}" \
    LAZYROOT_TEST_KERNEL_DEB="${LAZYROOT_TEST_KERNEL_DEB-}" \
    LAZYROOT_TEST_BIN="${LAZYROOT_TEST_BIN-}" \
    LAZYROOT_HOME="${LAZYROOT_HOME-}" \
    LAZYROOT_BENCH_PEER_INIT="${LAZYROOT_BENCH_PEER_INIT-}" \
    LAZYROOT_GUEST_INIT="${LAZYROOT_GUEST_INIT-}" \
    LAZYROOT_VHOST_DEVICE_VSOCK="${LAZYROOT_VHOST_DEVICE_VSOCK-}" \
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR-}" \
    CARGO_MANIFEST_DIR="${CARGO_MANIFEST_DIR-}" \
    RUST_BACKTRACE="${RUST_BACKTRACE-}" \
    "$@"
