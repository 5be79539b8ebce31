#!/bin/sh
# Has vfkit's own parser read what lazyroot would tell vfkit. VFKIT_SOURCES is a checkout of vfkit; Go builds the parser.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

[ -n "${VFKIT_SOURCES-}" ] || fail "say where vfkit's sources are: make check-vfkit VFKIT_SOURCES=DIR"
command -v go >/dev/null || fail "no Go in PATH: 'apt-get install golang-go', or https://go.dev/dl"

here=$PWD
mkdir -p "$tools"
# Among vfkit's sources, so that its own list of modules says where everything else comes from.
(cd "$VFKIT_SOURCES" && go build -o "$tools/vfkit-parser" "$here/tests/vfkit-parser/main.go")
cargo test --release --locked -p lazyroot-tests --test vfkit_arguments -- --include-ignored
