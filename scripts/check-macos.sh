#!/bin/sh
# Type-checks lazyroot for macOS on Linux, warnings denied; with `link`, links it into target/macos too. zig's clang
# builds the C dependencies and knows macOS's libc.
#
# usage: scripts/check-macos.sh [link]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

triple=aarch64-apple-darwin
frameworks=$target/macos/frameworks

# Apple's frameworks are not for us to have: each is a stub with the names that a crate declares of it, so that the
# linker still says which others are missing.
stub_framework() { # NAME CRATE
    crate=$(cargo metadata --format-version 1 --locked --filter-platform "$triple" |
        sed -n "s/.*\"manifest_path\":\"\([^\"]*\/$2-[0-9][^\"\/]*\)\/Cargo\.toml\".*/\1/p")
    [ -n "$crate" ] || fail "no crate $2, which declares the framework $1: does anything link with it still?"
    symbols=$(find "$crate/src" -name '*.rs' -exec sed -nE \
        's/^ *pub (fn|static) ((Sec|SSL|CF|kSec|kSSL|kCF|__CF)[A-Za-z0-9_]*).*/_\2/p' {} + | sort -u | paste -sd , -)
    mkdir -p "$frameworks/$1.framework"
    cat >"$frameworks/$1.framework/$1.tbd" <<END
--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '/System/Library/Frameworks/$1.framework/Versions/A/$1'
exports:
  - targets: [ arm64-macos ]
    symbols: [ $symbols ]
...
END
}

case ${1-} in
'') verb=check ;;
link)
    verb=zigbuild
    # rustls asks macOS which certificates are trusted.
    stub_framework Security security-framework-sys
    stub_framework CoreFoundation core-foundation-sys
    RUSTFLAGS="${RUSTFLAGS-} -L framework=$frameworks"
    # Nobody can run it here, so it is not optimised.
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=0
    ;;
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
