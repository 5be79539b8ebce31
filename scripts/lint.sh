#!/bin/sh
# What must be clean before anything lands.
set -eu
cd "$(dirname "$0")/.."

cargo fmt --all --check
# The release profile shares its build scripts and proc macros with `make build`.
cargo clippy --release --workspace --all-targets --all-features --locked -- -D warnings
if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh .ci/run
fi
# The limits of prose (CONTRIBUTING.md, "Prose").
sh scripts/prose.sh
