#!/bin/sh
# Makes an arm64 Debian tree in target/demo-arm64/rootfs and fetches Debian's arm64 cloud kernel package to
# target/demo-arm64; about 60 MB and 28 MB. The packages are unpacked but not configured: that works on a machine that
# cannot run arm64 programs.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

include=base-files,base-passwd,bash,coreutils,dash,dbus,debianutils,findutils,grep,gzip,hostname,init-system-helpers
include=$include,iproute2,libc-bin,login,mawk,mount,passwd,perl-base,procps,python3,sed,systemd,systemd-sysv,tar,udev
include=$include,util-linux

# The hooks do what base-passwd would when it is configured.
# shellcheck disable=SC2016 # expanded by the hooks' shell
make_image "$demo_arm64" trixie linux-image-cloud-arm64 --architectures=arm64 --variant=extract --include="$include" \
    --extract-hook='cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"' \
    --extract-hook='cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"'
