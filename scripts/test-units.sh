#!/bin/sh
# The tests of single functions and of the sources, on Linux and macOS: no root, no VM, nothing to download but crates.
set -eu
cd "$(dirname "$0")/.."

set -- -p lazyroot-proto -p lazyroot-archive -p lazyroot
# guest-init is a Linux program, and the library of the end-to-end tests mounts things.
[ "$(uname)" = Darwin ] || set -- "$@" -p lazyroot-guest
cargo test --locked --lib "$@"
[ "$(uname)" = Darwin ] || cargo test --locked -p lazyroot-tests --test architecture
