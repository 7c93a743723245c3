#!/usr/bin/env bash
# Run a command in a Debian 13 (trixie) system that has Swift 6: runtimes/ios/Tests/run_in_trixie.sh swift --version
#
# The first run makes the system, .native/trixie: 2.8 GB, of which 570 MB are downloaded from the mirror that this
# machine's apt uses. Needs root and debootstrap. The command sees the checkout at its usual path.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/../../.." && pwd)
system=$checkout/.native/trixie

make_system() {
    local mirror new=$system.new
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 'Component: main' | head -n 1)
    rm -rf "$new"
    mkdir -p "$new"
    debootstrap --variant=minbase trixie "$new" "$mirror" > /dev/null
    DEBIAN_FRONTEND=noninteractive chroot "$new" apt-get -o Dpkg::Use-Pty=0 install --quiet --quiet --yes --no-install-recommends \
        swiftlang libc6-dev libstdc++-14-dev > /dev/null
    chroot "$new" apt-get clean
    mv "$new" "$system"
}

[ -d "$system" ] || make_system

# The mounts are in a namespace of their own, so they end with the command. Swift finds its libraries through /proc.
mkdir -p "$system$checkout"
exec unshare --mount --pid --fork bash -c '
    set -e
    system=$1 checkout=$2
    shift 2
    mount --bind "$checkout" "$system$checkout"
    mount -t proc proc "$system/proc"
    exec chroot "$system" env -i HOME=/root PATH=/usr/bin:/bin bash -c "cd \"\$1\" && shift && exec \"\$@\"" - "$checkout" "$@"
' - "$system" "$checkout" "$@"
