#!/bin/sh
# Boots arm64 guests, emulated unless this machine is one.
set -eu
cd "$(dirname "$0")/.."

cargo test --release --locked -p lazyroot-tests --features arm64 --test arm64 \
    --config scripts/root.toml -- "$@"
