# What the scripts share; read with `.` from the top of the repository.
# shellcheck shell=sh

fail() {
    echo "lazyroot: $*" >&2
    exit 1
}

# Runs a command as root: plainly when we are, else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root and there is no sudo: $*"
    fi
}

target=${CARGO_TARGET_DIR:-$PWD/target}
# shellcheck disable=SC2034 # for those who read this file
demo=$target/demo
# shellcheck disable=SC2034
demo_arm64=$target/demo-arm64
tools=$target/tools
# shellcheck disable=SC2034
machine=$(uname -m | sed 's/^arm64$/aarch64/') # as Rust names it; macOS says arm64

# Whether rustup's toolchain can build for a target.
has_target() { # TRIPLE
    [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ]
}

# `cargo install`s a program of that very version into target/tools, unless it is there.
cargo_tool() { # NAME VERSION [OPTION OF CARGO INSTALL]...
    [ -e "$tools/.$1-$2" ] && return
    echo "installing $1 $2 into $tools ..." >&2
    name=$1 version=$2
    shift 2
    CARGO_TARGET_DIR=$tools/build-$name cargo install "$name" --version "$version" "$@" --locked --force --root "$tools" || return
    rm -rf "$tools/build-$name"
    touch "$tools/.$name-$version"
}

# Makes a Debian tree in DIR/rootfs and fetches a kernel package to DIR, unless both are there and were made with the
# same arguments. Both come from the MIRROR. The same packages give the same image, and so the same digest.
make_image() { # DIR SUITE KERNEL_PACKAGE [OPTION OF MMDEBSTRAP]...
    place=$1 suite=$2 kernel=$3
    shift 3
    recipe="$suite $kernel $*"
    [ "$(cat "$place/.done" 2>/dev/null)" = "$recipe" ] && return
    as_root rm -rf "$place"
    mkdir -p "$place"
    echo "making a Debian $suite image in $place ..." >&2
    # A tar on the way because mmdebstrap clamps times only there: to the release day of trixie, but any day would do.
    # Trees that are unpacked and no more have extract hooks alone. The hook's apt is set up for the suite and the
    # architecture, whatever this machine runs.
    # shellcheck disable=SC2016 # expanded by the hook's shell
    as_root env SOURCE_DATE_EPOCH=1754697600 PLACE="$place" KERNEL="$kernel" mmdebstrap --quiet --format=tar "$@" \
        --extract-hook='cd "$PLACE" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
            name=$(apt-cache depends "$KERNEL" | sed -n "s/^ *Depends: \(linux-image-[0-9].*\)/\1/p" | head -n 1) &&
            apt-get -qq -o APT::Sandbox::User=root download "$name"' \
        "$suite" "$place/rootfs.tar" "${MIRROR:-http://deb.debian.org/debian}"
    mkdir "$place/rootfs"
    as_root tar -xf "$place/rootfs.tar" -C "$place/rootfs" --numeric-owner --xattrs --xattrs-include='*'
    rm -f "$place/rootfs.tar"
    ls "$place"/linux-image-*.deb >/dev/null || fail "the kernel package was not downloaded"
    printf '%s\n' "$recipe" >"$place/.done"
}
