#!/bin/bash
# The benchmark's workloads: of a tree mounted on the host, and in a VM whose root is that tree. Results are lines
#
#   bench-result WORKLOAD CACHE NANOSECONDS REQUESTS BYTES
#
# where the last two are what was read from the disk /dev/vda, if there is one.
#
# usage: workloads.sh mounted ROOT WORKLOAD CACHE   once, with the caches as they are, which is CACHE
#        workloads.sh guest WORKLOAD...             each with cold and then with warm caches, and what the agent needs
set -euo pipefail
export LC_ALL=C

# A mounted tree: all of it, and all fifteen files of zlib's library.
root=
archive=(--exclude=./bench .)
sources='*.c'

# An emulated processor takes fifteen times as long for everything: some 2,700 files, and four.
in_guest() {
    root=/
    cd /
    archive=(usr/include usr/lib/python3*)
    sources='adler32.c compress.c crc32.c uncompr.c'
}

# Without the pipe tar sees /dev/null and reads nothing.
run_tar() {
    tar cf - -C "$root" "${archive[@]}" | cat >/dev/null
}

run_find() {
    find "$root" \( -path "${root%/}/proc" -o -path "${root%/}/sys" \) -prune -o -printf %s >/dev/null
}

# Without -B python would look for a place to write its caches.
run_python() {
    chroot "$root" python3 -B -c 'import json, ssl, asyncio, http.server, email, xml.dom.minidom'
}

run_gcc() {
    chroot "$root" sh -c "cd /bench/zlib && gcc -O1 -DHAVE_UNISTD_H -shared -fPIC -o /tmp/libz.so $sources"
}

run_sequential() {
    dd if="$root/bench/large" of=/dev/null bs=1M status=none
}

# The mean latency of one read. The same blocks every time.
run_random() { # CACHE
    if [ "$1" = warm ]; then
        # From memory 2,000 take three milliseconds, which says nothing.
        read_at_random 50000
        read_at_random 50000
    else
        read_at_random 2000
    fi
}

read_at_random() { # NUMBER
    nanoseconds=$(fio --name=random --filename="$root/bench/large" --readonly --rw=randread --bs=4k --ioengine=psync \
        --number_ios="$1" --norandommap --randseed=1 --invalidate=0 --fadvise_hint=random --output-format=json |
        sed -n '/"lat_ns"/,/}/s/.*"mean" : \([0-9]*\).*/\1/p' | head -n 1)
}

# Reads of the disk and bytes of them since the machine's start; see the kernel's Documentation/block/stat.rst.
disk() {
    requests=0 sectors=0
    if [ -e /sys/block/vda/stat ]; then
        read -r requests _ sectors _ </sys/block/vda/stat
    fi
}

measure() { # WORKLOAD CACHE
    disk
    local requests_before=$requests sectors_before=$sectors begin=${EPOCHREALTIME/./} end
    nanoseconds=
    "run_$1" "$2"
    end=${EPOCHREALTIME/./}
    disk
    echo "bench-result $1 $2 ${nanoseconds:-$((1000 * (end - begin)))}" \
        "$((requests - requests_before)) $((512 * (sectors - sectors_before)))"
}

# bench-agent RSS TICKS: of lazyroot's process in the guest, memory in KiB, and processor time in ten idle seconds.
agent() {
    local dir name before after rss uptime
    for dir in /proc/[0-9]*; do
        name=
        read -r -d '' name <"$dir/cmdline" || true
        [[ $name == @* ]] || continue
        # A minute after the boot it drops what was brought ahead and nobody has asked for.
        while read -r uptime _ </proc/uptime && ((${uptime%.*} < 70)); do
            sleep 1
        done
        read -ra before <"$dir/stat"
        sleep 10
        read -ra after <"$dir/stat"
        rss=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\).*/\1/p' "$dir/status")
        echo "bench-agent $rss $((after[13] + after[14] - before[13] - before[14]))"
    done
}

case $1 in
mounted)
    root=$2
    measure "$3" "$4"
    ;;
guest)
    shift
    in_guest
    for workload; do
        echo "bench-begin $workload"
        # The host reads its servers' counters meanwhile.
        sleep 1
        echo 3 >/proc/sys/vm/drop_caches
        measure "$workload" cold
        measure "$workload" warm
    done
    agent
    echo bench-done
    ;;
esac
