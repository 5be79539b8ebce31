#!/bin/sh
# Builds the book; with the mdbook in PATH if there is one.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

if ! command -v mdbook >/dev/null; then
    sh scripts/deps.sh build
    cargo_tool mdbook 0.5.4
    PATH=$tools/bin:$PATH
fi
mdbook build docs --dest-dir "$target/book"
