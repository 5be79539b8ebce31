#!/bin/sh
# Runs a command as root, with the variables of lazyroot, its tests, cargo and Rust: sudo would drop them.
set -eu
[ "$(id -u)" = 0 ] && exec "$@"
command -v sudo >/dev/null || {
    echo "lazyroot: this needs root and there is no sudo: $*" >&2
    exit 1
}
for name in $(env | sed -nE 's/^((LAZYROOT|CARGO|NEXTEST|RUST)_[A-Z0-9_]*)=.*/\1/p'); do
    eval "value=\$$name"
    # shellcheck disable=SC2154 # eval sets it
    set -- "$name=$value" "$@"
done
exec sudo env "$@"
