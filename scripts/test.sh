#!/bin/sh
# Formatting, lints and all tests. The release profile, so that what `make build` compiled is not compiled again.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

give_tests_their_inputs

sh scripts/lint.sh
# Mounts need root: cargo itself stays with the user, the test programs are started through as-root.sh.
# All suites, whatever fails: one run names every failure.
cargo test --release --workspace --locked --no-fail-fast \
    --config "target.'cfg(unix)'.runner = ['sh', '$PWD/scripts/as-root.sh']" -- "$@"
