#!/bin/sh
# Runs the benchmarks, or some of them; as root because they mount and drop caches. Arguments are the program's:
# see scripts/bench.sh --help.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

give_tests_their_inputs
sh scripts/bench-inputs.sh
# Its own images, which stay for the next run.
LAZYROOT_HOME=$target/bench/home
LAZYROOT_BENCH_ROOTFS=$target/bench/rootfs
LAZYROOT_BENCH_PEERS=$target/bench/peers
LAZYROOT_BENCH_TOOLS=$tools
LAZYROOT_BENCH_FS=$target/release/bench-fs
# As guest-init, and beside it: one static binary.
LAZYROOT_BENCH_PEER_INIT=$target/guest/$triple/guest/lazyroot-peer-init
export LAZYROOT_HOME LAZYROOT_BENCH_ROOTFS LAZYROOT_BENCH_PEERS LAZYROOT_BENCH_TOOLS LAZYROOT_BENCH_FS \
    LAZYROOT_BENCH_PEER_INIT

RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" cargo build --profile guest --locked \
    -p lazyroot-peer-init --target "$triple" --target-dir "$target/guest"
cargo build --release --locked -p lazyroot-tests --bins
exec sh scripts/as-root.sh "$target/release/bench" "$target/bench" "$@"
