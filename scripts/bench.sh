#!/bin/sh
# Runs the benchmarks, or some of them; as root because they mount and drop caches. Arguments are the program's:
# see scripts/bench.sh --help.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

sh scripts/bench-inputs.sh
# Its own images, which stay for the next run.
export LAZYROOT_HOME="$target/bench/home"

# The init of other systems' guests: as guest-init, and beside it, one static binary.
RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" cargo build --profile guest --locked \
    -p lazyroot-peer-init --target "$machine-unknown-linux-gnu" --target-dir "$target/guest"
cargo build --release --locked -p lazyroot-tests --bins
exec sh scripts/as-root.sh "$target/release/bench" "$target/bench" "$@"
