#!/bin/sh
# Checks licences, sources and bans of every dependency against deny.toml; advisories too, where their database
# can be fetched.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

cargo_tool cargo-deny 0.20.2
"$tools/bin/cargo-deny" --locked check licenses bans sources
if "$tools/bin/cargo-deny" --locked fetch db >/dev/null 2>&1; then
    "$tools/bin/cargo-deny" --locked check advisories
else
    echo "advisories not checked: their database cannot be fetched from here" >&2
fi
