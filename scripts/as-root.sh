#!/bin/sh
# Runs a command as root with the variables that lazyroot and its tests read; sudo would drop them.
set -eu
if [ "$(id -u)" = 0 ]; then
    mountpoint -q / && exec "$@"
    # In a chroot whose root is no mount point, skopeo cannot unpack a layer: give the command a root that is one.
    # shellcheck disable=SC2016 # expanded by the shells that are started
    exec unshare --mount sh -c 'mount --rbind / /mnt && exec chroot /mnt sh -c "$0" "$PWD" "$@"' \
        'cd "$0" && exec "$@"' "$@"
fi
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
    sh "$0" "$@"
