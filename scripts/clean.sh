#!/bin/sh
# Removes everything the other targets made, the demo's store included.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

[ -d "$target" ] || exit 0
# Never through a mount: what is mounted in there belongs to somebody else.
if grep -qF " $target/" /proc/self/mounts 2>/dev/null; then
    fail "something is mounted below $target: unmount it first (grep '$target' /proc/self/mounts)"
fi
# The demo image belongs to root when sudo made it.
if [ -e "$demo" ] || [ -e "$demo_arm64" ]; then as_root rm -rf "$target"; else rm -rf "$target"; fi
