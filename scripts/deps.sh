#!/bin/sh
# Installs what a make target needs and the machine does not have. Looks first: when everything is there this
# costs some milliseconds, needs no network and no root.
#
# usage: scripts/deps.sh build|image|run|test|bench|lint|arm64|macos|fuzz
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
    # skopeo reads registries and containers-storage; fsverity and erofs-utils are what we compare ourselves with;
    # a small ext4 is filled up. The client is for 'lazyroot ssh', the server for ssh:// upstreams; the last two are
    # what virtiofsd is built with.
    test)
        echo skopeo docker-registry busybox-static fsverity erofs-utils e2fsprogs openssh-client openssh-server \
            libcap-ng-dev libseccomp-dev
        ;;
    # What cross-builds guest-init is asked for where it is known whether it is needed.
    arm64) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross mmdebstrap debian-archive-keyring ca-certificates ;;
    # Build scripts run here.
    macos) echo gcc libc6-dev python3-venv ;;
    # The peers come from a Debian tree of their own (bench-inputs.sh); nydus is built, which takes cmake.
    bench) echo fio cmake time ;;
    fuzz) echo g++ pkg-config libssl-dev zlib1g-dev ;;
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
install_qemu() { # PACKAGE
    qemu=$1
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

# A standard library for a target: rustup's, else what Debian's own Rust offers.
need_target() { # TRIPLE DEBIAN_PACKAGE...
    wanted=$1
    shift
    has_target "$wanted" && return
    if command -v rustup >/dev/null && rustup target add "$wanted" >/dev/null 2>&1; then return; fi
    echo "rustup has no $wanted: taking Debian's Rust for it" >&2
    install_packages rustc-web cargo-web "$@"
}

need_rust() {
    if ! command -v cargo >/dev/null; then
        # Debian has rustup since trixie; its cargo is a stand-in that needs a toolchain.
        as_root apt-get update -qq
        [ -n "$(apt-cache madison rustup 2>/dev/null)" ] ||
            fail "no cargo in PATH: install Rust 1.$oldest or later (https://rustup.rs); with sudo, run make as yourself"
        install_packages rustup
    fi
    # The stand-in fails as long as no toolchain is there: rustup is new, or an earlier download failed.
    if ! said=$(cargo --version 2>&1); then
        command -v rustup >/dev/null || fail "the cargo in PATH does not run: $said"
        install_toolchain
        said=$(cargo --version 2>&1) || fail "the cargo in PATH does not run: $said"
    fi
    minor=$(echo "$said" | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge "$oldest" ] ||
        fail "$said is too old: lazyroot needs 1.$oldest or later ('rustup update stable')"
}

# rustup's stable toolchain as the one that cargo takes. A download is tried three times.
install_toolchain() {
    for pause in 2 5 0; do
        rustup toolchain install stable --profile default && rustup default stable && return
        [ "$pause" = 0 ] || echo "the download failed: trying again in $pause s" >&2
        sleep "$pause"
    done
    fail "rustup cannot install Rust: see its message above, then run this again ('rustup toolchain install stable')"
}

if [ "$(uname)" = Darwin ]; then # Written from Homebrew's documentation, never run.
    [ "$1" != run ] || command -v vfkit >/dev/null || brew install vfkit
    command -v cargo >/dev/null || brew install rustup
    # guest-init is a Linux program: zig links it.
    command -v cargo-zigbuild >/dev/null || brew install cargo-zigbuild
    rustup target add aarch64-unknown-linux-musl
    exit
fi

case $(uname -m) in
x86_64) native_qemu='qemu-system-x86' ;;
aarch64) native_qemu='qemu-system-arm' ;;
*) fail "no support for $(uname -m) yet: x86_64 and aarch64 only" ;;
esac

# shellcheck disable=SC2046 # a list of names
install_packages $(packages "$1")

case $1 in
build | fuzz) need_rust ;;
arm64)
    need_rust
    if [ "$machine" != aarch64 ]; then
        dpkg --print-foreign-architectures | grep -qx arm64 || as_root dpkg --add-architecture arm64
        need_target aarch64-unknown-linux-gnu libstd-rust-web-dev:arm64
    fi
    ;;
macos)
    need_rust
    need_target aarch64-apple-darwin rust-web-src
    if ! [ -x "$tools/zig/bin/cargo-zigbuild" ]; then
        echo "installing zig and cargo-zigbuild into $tools/zig ..." >&2
        python3 -m venv "$tools/zig"
        "$tools/zig/bin/pip" install --quiet --disable-pip-version-check ziglang==0.17.0 cargo-zigbuild==0.24.0
    fi
    ;;
bench)
    need_rust
    # Some minutes of compiling. Where that fails the benchmark says so and goes on.
    cargo_tool nydus-rs 2.2.0 || echo "the benchmark goes without nydus" >&2
    # composefs' own command line, which imports are compared with.
    cargo_tool composefs-ctl 0.9.4
    ;;
test | lint)
    need_rust
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        rustup component add rustfmt clippy
    fi
    ;;
esac

case $1 in
arm64) install_qemu qemu-system-arm ;;
run | test | bench)
    install_qemu "$native_qemu"
    # vsock's device: the kernel's if we may use it. The tests always want the daemon: they hold its limits.
    if [ "$1" = test ] || ! [ -w /dev/vhost-vsock ]; then
        cargo_tool vhost-device-vsock 0.3.0
    fi
    # A real S3 server; the last version that our oldest Rust can build.
    [ "$1" = run ] || cargo_tool s3s-fs 0.12.0 --features binary
    ;;
esac

# Debian has a package of it since 13; the tests take this one everywhere.
[ "$1" != test ] || cargo_tool virtiofsd 1.14.0
