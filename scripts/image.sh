#!/bin/sh
# Makes the demo image, a real Debian tree in target/demo/rootfs, and fetches Debian's cloud kernel package to
# target/demo; about 200 MB and 35 MB.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# Host keys made here would be everybody's. The image makes its own at its first boot (sshd-keygen.service), which
# systemd knows by the missing machine id: an empty one, which mmdebstrap would leave, does not count.
# shellcheck disable=SC2016 # expanded by the hook's shell
make_image "$demo" trixie "linux-image-cloud-$(dpkg --print-architecture)" --variant=minbase \
    --include=systemd,systemd-sysv,udev,dbus,openssh-server,python3,iproute2 \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id'
