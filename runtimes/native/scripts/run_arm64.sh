#!/usr/bin/env bash
# Run a program for Linux on arm64 with qemu-user: run_arm64.sh PROGRAM ARGUMENT...
#
# ARM64_CPU is the processor that qemu emulates: `max`, which has instructions for dot products (default), or
# `cortex-a53`, which has none.
#
# ONNX Runtime reads /proc/cpuinfo. qemu 7.2 shows the host's file there, and ONNX Runtime crashes on its content. So the
# program gets a file that fits the emulated processor. qemu looks for each file first in the folder of its option -L.
set -euo pipefail

cpu=${ARM64_CPU:-max}
base="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
case $cpu in
max) part=0xd0c features="$base atomics fphp asimdhp asimdrdm asimddp" ;; # part 0xd0c: a Neoverse N1
cortex-a53) part=0xd03 features="$base" ;;
*) echo "run_arm64.sh: ARM64_CPU: found $cpu, expected max or cortex-a53" >&2; exit 2 ;;
esac

root="$(cd "$(dirname "$0")/../../.." && pwd)/.native/arm64-$cpu"
if [ ! -d "$root" ]; then
    new=$(mktemp -d "$root.XXXXXX")
    mkdir "$new/proc"
    ln -s /usr/aarch64-linux-gnu/lib "$new/lib"
    for ((i = 0; i < $(getconf _NPROCESSORS_CONF); i++)); do
        printf '%s\t: %s\n' processor $i BogoMIPS 100.00 Features "$features" "CPU implementer" 0x41 \
            "CPU architecture" 8 "CPU variant" 0x0 "CPU part" $part "CPU revision" 0
        echo
    done > "$new/proc/cpuinfo"
    mv -T "$new" "$root" 2>/dev/null || rm -r "$new" # another process was faster
fi
exec qemu-aarch64 -L "$root" -cpu "$cpu" "$@"
