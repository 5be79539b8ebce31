#!/bin/sh
# Imports the demo image and kernel (once), boots a VM from them and runs a command that proves where it is.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

name=debian:trixie
lazyroot=$target/release/lazyroot
# The demo's own folder, so that it leaves nothing behind after `make clean`.
export LAZYROOT_HOME="${LAZYROOT_HOME:-$target/home}"
# Installed only where the kernel has no vhost_vsock for us.
if [ -x "$tools/bin/vhost-device-vsock" ]; then
    export LAZYROOT_VHOST_DEVICE_VSOCK="$tools/bin/vhost-device-vsock"
fi

deb=$(ls "$demo"/linux-image-*.deb)
version=${deb##*/linux-image-}
version=${version%%_*}

# Only root can read all of a Debian tree; the store is then handed to whoever runs this, and the VM needs no root.
import() {
    if [ "$(id -u)" = 0 ]; then
        "$lazyroot" "$@"
    else
        as_root chown -R 0:0 "$LAZYROOT_HOME"
        as_root env LAZYROOT_HOME="$LAZYROOT_HOME" "$lazyroot" "$@"
        as_root chown -R "$(id -u):$(id -g)" "$LAZYROOT_HOME"
    fi
}

# An image that was made again is imported again.
imported=$LAZYROOT_HOME/.demo-image
if ! cmp -s "$demo/.done" "$imported" || ! "$lazyroot" image ls --format json | grep -q "\"$name\""; then
    import image import "dir:$demo/rootfs" --name "$name"
    cp "$demo/.done" "$imported"
fi
"$lazyroot" kernel ls --format json | grep -qF "$version" || import kernel import "$deb"

# shellcheck disable=SC2016 # expanded in the guest
exec "$lazyroot" run --report "$name" -- sh -c '
    . /etc/os-release && echo "$PRETTY_NAME, Linux $(uname -r)"
    findmnt -n -o FSTYPE,SOURCE /
    python3 -c "import json, ssl, sys; print(\"python\", sys.version.split()[0], \"with\", ssl.OPENSSL_VERSION)"'
