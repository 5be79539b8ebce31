#!/bin/sh
# Type-checks lazyroot for macOS on Linux, warnings denied; with `link`, links it into target/macos too. zig's clang
# builds the C dependencies and knows macOS's libc.
#
# usage: scripts/check-macos.sh [link]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

triple=aarch64-apple-darwin
case ${1-} in
'') verb=check ;;
link) verb=zigbuild ;;
*) fail "check-macos.sh: unknown word '$1'" ;;
esac
# A folder of its own, so that the flags do not have everything else built again.
set -- --release --locked -p lazyroot --target "$triple" --target-dir "$target/macos"

PATH=$tools/zig/bin:$PATH
# Nothing here can strip a Mach-O.
export RUSTFLAGS="${RUSTFLAGS-} -D warnings" CARGO_PROFILE_RELEASE_STRIP=none
if has_target "$triple"; then
    exec cargo-zigbuild "$verb" "$@"
fi
# No standard library for macOS here: it is built from Debian's package of its source. `RUSTC_BOOTSTRAP` lets a stable
# compiler do that.
export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo
exec cargo-zigbuild "$verb" -Zbuild-std=std,panic_abort "$@"
