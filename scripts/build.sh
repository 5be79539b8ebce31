#!/bin/sh
# Builds lazyroot for this machine, and guest-init for its guests.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

cargo build --release --locked -p lazyroot
sh scripts/guest-init.sh
