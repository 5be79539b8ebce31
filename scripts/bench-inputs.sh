#!/bin/sh
# Makes what the benchmark works on, in target/bench, once: `rootfs`, the demo image and a C compiler with something
# to compile, and `peers`, a Debian tree that holds the programs lazyroot is compared with, so that their versions
# do not depend on the machine's distribution. Both come from the MIRROR, about 350 MB; the source to compile is zlib's, as
# the crate libz-sys carries it.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

suite=trixie
mirror=${MIRROR:-http://deb.debian.org/debian}
# Carries zlib 1.3.1, which is also trixie's.
libz_sys=1.1.20
bench=$target/bench
mkdir -p "$bench"

# A unit that says on the console that the default target is reached, and ends the VM. `DefaultDependencies=no`: a
# target waits for its ordinary units, and this one waits for the target.
up_unit='[Unit]
DefaultDependencies=no
After=graphical.target multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
ExecStart=/bin/echo lazyroot-bench-up
ExecStart=/bin/systemctl poweroff --force --force
[Install]
WantedBy=graphical.target'

# The crate's sources in $bench/zlib: cargo checks them against the registry's digest. Debian's mirror does not keep every
# source package that its index names.
fetch_zlib() {
    mkdir -p "$bench/zlib/src"
    : >"$bench/zlib/src/lib.rs"
    cat >"$bench/zlib/Cargo.toml" <<END
[package]
name = "zlib-source"
edition = "2024"
[dependencies]
libz-sys = "=$libz_sys"
[workspace]
END
    (cd "$bench/zlib" && cargo vendor --quiet --versioned-dirs >/dev/null)
}

# As the demo image (scripts/image.sh), whose packages these are too. zlib is the project to compile: fifteen files of
# real C that need no configuration. The journal's folder is removed because of its ACLs,
# which nydus refuses. sshd keeps its host keys: without them systemd starts it again and again.
make_rootfs() {
    include=systemd,systemd-sysv,udev,dbus,openssh-server,python3,iproute2,gcc,libc6-dev,fio
    # shellcheck disable=SC2016 # expanded by the hooks' shell
    as_root env UNIT="$up_unit" ZLIB="$bench/zlib/vendor/libz-sys-$libz_sys/src/zlib" mmdebstrap --quiet \
        --variant=minbase --include="$include" --format=tar \
        --customize-hook='rm -r "$1/var/log/journal"' \
        --customize-hook='mkdir "$1/bench" && cp -r "$ZLIB" "$1/bench/zlib"' \
        --customize-hook='printf "%s\n" "$UNIT" >"$1/etc/systemd/system/bench-up.service" &&
            chroot "$1" systemctl --quiet enable bench-up.service' \
        "$suite" "$bench/rootfs.tar" "$mirror"
    as_root rm -rf "$bench/rootfs"
    mkdir "$bench/rootfs"
    as_root tar -xf "$bench/rootfs.tar" -C "$bench/rootfs" --numeric-owner --xattrs --xattrs-include='*'
    rm -f "$bench/rootfs.tar"
    touch "$bench/.rootfs-done"
}

# Run through their own dynamic loader (tests/src/bench/peers.rs), not in a chroot.
make_peers() {
    include=virtiofsd,qemu-utils,erofsfuse,erofs-utils,squashfuse,squashfs-tools
    as_root rm -rf "$bench/peers"
    as_root mmdebstrap --quiet --variant=extract --include="$include" "$suite" "$bench/peers" "$mirror"
    touch "$bench/.peers-done"
}

if ! [ -e "$bench/.rootfs-done" ]; then
    echo "making the benchmark's Debian image in $bench ..." >&2
    fetch_zlib
    make_rootfs
fi
if ! [ -e "$bench/.peers-done" ]; then
    echo "fetching the benchmark's peers ..." >&2
    make_peers
fi
