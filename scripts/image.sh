#!/bin/sh
# Makes the demo image, a real Debian tree in target/demo/rootfs, and fetches Debian's cloud kernel package to
# target/demo. Both come from the MIRROR; about 200 MB and 35 MB.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

suite=trixie
mirror=${MIRROR:-http://deb.debian.org/debian}
include=systemd,systemd-sysv,udev,dbus,openssh-server,python3,iproute2
kernel=linux-image-cloud-$(dpkg --print-architecture)

[ -e "$demo/.done" ] && exit
as_root rm -rf "$demo"
mkdir -p "$demo"

# Fixed times: the same packages give the same image, and so the same digest.
SOURCE_DATE_EPOCH=1754697600 # trixie's release day
export SOURCE_DATE_EPOCH

echo "making a Debian $suite image in $demo ..." >&2
# A tar on the way because mmdebstrap clamps times only there. Host keys made here would be everybody's: the image
# makes its own at boot (sshd-keygen.service). The hook's apt is set up for $suite, whatever this machine runs.
# shellcheck disable=SC2016 # expanded by the hooks' shell
as_root env SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" DEMO="$demo" KERNEL="$kernel" mmdebstrap --quiet \
    --variant=minbase --include="$include" --format=tar \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook='cd "$DEMO" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
        name=$(apt-cache depends "$KERNEL" | sed -n "s/^ *Depends: \(linux-image-[0-9].*\)/\1/p" | head -n 1) &&
        apt-get -qq -o APT::Sandbox::User=root download "$name"' \
    "$suite" "$demo/rootfs.tar" "$mirror"

mkdir "$demo/rootfs"
as_root tar -xf "$demo/rootfs.tar" -C "$demo/rootfs" --numeric-owner --xattrs --xattrs-include='*'
rm -f "$demo/rootfs.tar"
ls "$demo"/linux-image-*.deb >/dev/null || fail "the kernel package was not downloaded"
touch "$demo/.done"
