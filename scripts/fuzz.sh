#!/bin/sh
# Runs every fuzz target for a while (FUZZ_SECONDS, 60), or only those that are named. Needs a C++ compiler, for libFuzzer.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

cargo_tool cargo-fuzz 0.13.2

export CARGO_TARGET_DIR="$target/fuzz"
# The options of the sanitizers are unstable; so asked, the stable compiler takes them too.
export RUSTC_BOOTSTRAP=1
# What was found interesting is kept for the next run.
for name in "${@:-$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)}"; do
    for one in $name; do
        mkdir -p "$target/fuzz/corpus/$one"
        "$tools/bin/cargo-fuzz" run "$one" "$target/fuzz/corpus/$one" -- \
            -max_total_time="${FUZZ_SECONDS:-60}" -max_len=8192
    done
done
