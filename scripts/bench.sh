#!/bin/sh
# Runs the benchmarks on the demo image, or some of them (native, boot, launch); as root because they mount and drop
# caches.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

give_tests_their_inputs
# Its own images, which stay for the next run.
LAZYROOT_HOME=$target/bench/home
# As guest-init, and beside it: one static binary.
LAZYROOT_BENCH_PEER_INIT=$target/guest/$triple/guest/lazyroot-peer-init
export LAZYROOT_HOME LAZYROOT_BENCH_PEER_INIT

RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" cargo build --profile guest --locked \
    -p lazyroot-peer-init --target "$triple" --target-dir "$target/guest"
cargo build --release --locked -p lazyroot-tests --bin bench
exec sh scripts/as-root.sh "$target/release/bench" "$target/bench" "$@"
