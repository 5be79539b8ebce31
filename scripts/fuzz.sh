#!/bin/sh
# Runs every fuzz target for a while (FUZZ_SECONDS, 60), or only those that are named. Needs a nightly toolchain of
# rustup's, for its sanitizers, and a C++ compiler, for libFuzzer.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

command -v rustup >/dev/null || fail "fuzzing needs a nightly compiler: install rustup (https://rustup.rs)"
rustup run nightly cargo --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
cargo_tool cargo-fuzz 0.13.2

export CARGO_TARGET_DIR="$target/fuzz"
# What was found interesting is kept for the next run.
for name in "${@:-$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)}"; do
    for one in $name; do
        mkdir -p "$target/fuzz/corpus/$one"
        RUSTUP_TOOLCHAIN=nightly "$tools/bin/cargo-fuzz" run "$one" "$target/fuzz/corpus/$one" -- \
            -max_total_time="${FUZZ_SECONDS:-60}" -max_len=8192
    done
done
