#!/bin/sh
# Installs what a make target needs and the machine does not have. Looks first: when everything is there this
# costs some milliseconds, needs no network and no root.
#
# usage: scripts/deps.sh build|image|run|test|lint
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The oldest cargo that can build us (rust-version in Cargo.toml).
oldest=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' Cargo.toml)

packages() {
    case $1 in
    # pkg-config finds OpenSSL for composefs; libc6-dev also has the static libraries guest-init is linked with.
    build | lint) echo gcc libc6-dev pkg-config libssl-dev zlib1g-dev ;;
    image) echo mmdebstrap debian-archive-keyring ca-certificates ;;
    run) ;;
    # skopeo reads registries and containers-storage; fsverity and erofs-utils are what we compare ourselves with.
    test) echo skopeo docker-registry busybox-static fsverity erofs-utils ;;
    *) fail "deps.sh: unknown set '$1'" ;;
    esac
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
    command -v dpkg-query >/dev/null || fail "no dpkg here: install the equivalents of these Debian packages by hand: $*"
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "installing$missing ..." >&2
    # shellcheck disable=SC2086 # a list of names
    {
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
    }
}

# Emulated kernels crash at random under QEMU 7.2 (about one boot in fifteen): Debian 12 has a newer one among its
# backports, which are asked for here without touching the machine's own list of sources.
install_qemu() {
    version=$(dpkg-query -W -f '${Version}' "$qemu" 2>/dev/null || true)
    dpkg --compare-versions "${version:-0}" ge 1:8 && return
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$codename" != bookworm ]; then
        install_packages "$qemu"
        return
    fi
    mkdir -p "$target"
    sources=$target/backports.list
    cat /etc/apt/sources.list >"$sources" 2>/dev/null || true
    echo "deb ${MIRROR:-http://deb.debian.org/debian} bookworm-backports main" >>"$sources"
    echo "installing $qemu from bookworm-backports ..." >&2
    as_root apt-get -o Dir::Etc::sourcelist="$sources" update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Dir::Etc::sourcelist="$sources" install -qq -y \
        --no-install-recommends -t bookworm-backports "$qemu" >/dev/null
}

need_rust() {
    if ! command -v cargo >/dev/null; then
        # Debian has rustup since trixie; its cargo is a stand-in that needs a toolchain.
        as_root apt-get update -qq
        [ -n "$(apt-cache madison rustup 2>/dev/null)" ] ||
            fail "no cargo in PATH: install Rust 1.$oldest or later (https://rustup.rs); with sudo, run make as yourself"
        install_packages rustup
        rustup toolchain install stable --profile default
    fi
    minor=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge "$oldest" ] ||
        fail "$(cargo --version) is too old: lazyroot needs 1.$oldest or later ('rustup update stable')"
}

if [ "$(uname)" = Darwin ]; then # Written from Homebrew's documentation, never run.
    [ "$1" != run ] || command -v vfkit >/dev/null || brew install vfkit
    command -v cargo >/dev/null || brew install rust
    exit
fi

case $(uname -m) in
x86_64) qemu='qemu-system-x86' ;;
aarch64) qemu='qemu-system-arm' ;;
*) fail "no support for $(uname -m) yet: x86_64 and aarch64 only" ;;
esac

# shellcheck disable=SC2046 # a list of names
install_packages $(packages "$1")

case $1 in
build) need_rust ;;
test | lint)
    need_rust
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        rustup component add rustfmt clippy
    fi
    ;;
esac

case $1 in
run | test)
    install_qemu
    # vsock's device: the kernel's if we may use it. The tests always want the daemon: they hold its limits.
    if [ "$1" = test ] || ! [ -w /dev/vhost-vsock ]; then
        cargo_tool vhost-device-vsock 0.3.0
    fi
    ;;
esac
