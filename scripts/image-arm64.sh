#!/bin/sh
# Makes an arm64 Debian tree in target/demo-arm64/rootfs and fetches Debian's arm64 cloud kernel package to
# target/demo-arm64. The packages are unpacked but not configured: that works on a machine that cannot run arm64
# programs. About 60 MB and 28 MB from the MIRROR.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

suite=trixie
mirror=${MIRROR:-http://deb.debian.org/debian}
include=base-files,base-passwd,bash,coreutils,dash,dbus,debianutils,findutils,grep,gzip,hostname,init-system-helpers
include=$include,iproute2,libc-bin,login,mawk,mount,passwd,perl-base,procps,python3,sed,systemd,systemd-sysv,tar,udev
include=$include,util-linux
kernel=linux-image-cloud-arm64

[ -e "$demo_arm64/.done" ] && exit
as_root rm -rf "$demo_arm64"
mkdir -p "$demo_arm64"

SOURCE_DATE_EPOCH=1754697600 # trixie's release day
export SOURCE_DATE_EPOCH

echo "making an arm64 Debian $suite image in $demo_arm64 ..." >&2
# What base-passwd would do when it is configured. The last hook's apt is set up for $suite and arm64.
# shellcheck disable=SC2016 # expanded by the hooks' shell
as_root env SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" DEMO="$demo_arm64" KERNEL="$kernel" mmdebstrap --quiet \
    --architectures=arm64 --variant=extract --include="$include" --format=tar \
    --extract-hook='cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"' \
    --extract-hook='cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"' \
    --extract-hook='cd "$DEMO" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
        name=$(apt-cache depends "$KERNEL" | sed -n "s/^ *Depends: \(linux-image-[0-9].*\)/\1/p" | head -n 1) &&
        apt-get -qq -o APT::Sandbox::User=root download "$name"' \
    "$suite" "$demo_arm64/rootfs.tar" "$mirror"

mkdir "$demo_arm64/rootfs"
as_root tar -xf "$demo_arm64/rootfs.tar" -C "$demo_arm64/rootfs" --numeric-owner --xattrs --xattrs-include='*'
rm -f "$demo_arm64/rootfs.tar"
ls "$demo_arm64"/linux-image-*.deb >/dev/null || fail "the kernel package was not downloaded"
touch "$demo_arm64/.done"
