#!/bin/sh
# Builds guest-init for guests of an architecture (x86_64 or aarch64, this machine's if none is given) as one static
# binary. Another machine's needs its target: rustup's, else Debian's own Rust, which has one for arm64; on a Mac,
# cargo-zigbuild, which links for Linux.
#
# usage: scripts/guest-init.sh [ARCH]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The whole of every initramfs is to stay below 3 MiB compressed.
guest_init_limit=$((3 * 1024 * 1024))

arch=${1:-$machine}
case $arch in
x86_64 | aarch64) ;;
arm64) arch=aarch64 ;;
*) fail "no guests of architecture '$arch': use x86_64 or aarch64" ;;
esac
triple=$arch-unknown-linux-gnu
built=$target/guest/$triple/guest/guest-init

# With --target, RUSTFLAGS reach only what is built for the guest: build scripts and proc macros stay dynamic.
RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static"
export RUSTFLAGS
set -- --profile guest --locked -p lazyroot-guest --bin guest-init --target-dir "$target/guest"
if [ "$(uname)" = Darwin ]; then # Never run.
    RUSTFLAGS='' cargo zigbuild "$@" --target "$arch-unknown-linux-musl"
    built=$target/guest/$arch-unknown-linux-musl/guest/guest-init
elif [ "$arch" = "$machine" ]; then
    cargo build "$@" --target "$triple"
else
    variable=CARGO_TARGET_$(echo "$triple" | tr 'a-z-' 'A-Z_')_LINKER
    export "$variable=$arch-linux-gnu-gcc"
    if has_target "$triple"; then
        cargo build "$@" --target "$triple"
    else
        RUSTC=/usr/bin/rustc /usr/bin/cargo build "$@" --target "$triple"
    fi
fi

if command -v readelf >/dev/null && LC_ALL=C readelf -lW "$built" | grep -q INTERP; then
    fail "$built is not static: nothing in an initramfs could load it"
fi
size=$(wc -c <"$built")
[ "$size" -le "$guest_init_limit" ] || fail "guest-init has $size bytes, more than $guest_init_limit"

# Where lazyroot looks first: beside itself. `install` makes a new file: `cargo test` may have left a hard link to its
# own, dynamic guest-init there.
beside=$target/release/guest-init
[ "$(uname)" = Linux ] && [ "$arch" = "$machine" ] || beside=$beside-$arch
mkdir -p "$target/release"
cmp -s "$built" "$beside" || install -m 755 "$built" "$beside"
