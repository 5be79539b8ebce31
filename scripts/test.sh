#!/bin/sh
# Formatting, lints and all tests. The release profile, so that what `make build` compiled is not compiled again.
set -eu
cd "$(dirname "$0")/.."

sh scripts/lint.sh
# All suites, whatever fails: one run names every failure.
cargo test --release --workspace --locked --no-fail-fast --config scripts/root.toml -- "$@"
