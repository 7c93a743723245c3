#!/usr/bin/env bash
# Install the Debian packages that `make test-native` needs, if their programs are missing. Needs root or sudo for that.
set -euo pipefail

packages=(
    g++:g++ cmake:cmake ninja:ninja-build npm:npm javac:openjdk-17-jdk-headless
    clang++:clang clang-format:clang-format
    aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user
)
missing=()
for entry in "${packages[@]}"; do
    command -v "${entry%%:*}" > /dev/null || missing+=("${entry#*:}")
done
# The sanitizers' library is a package of its own, with clang's version in its name.
if ! dpkg-query --show --showformat='${Status}\n' 'libclang-rt-*-dev' 2>/dev/null | grep -q "install ok"; then
    missing+=(libclang-rt-14-dev)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

echo "== installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo --non-interactive); fi
install() {
    "${as_root[@]}" apt-get update --quiet --quiet &&
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --quiet --quiet --yes --no-install-recommends \
            "${missing[@]}" > /dev/null
}
if ! install; then
    echo ".ci/install_native.sh: could not install ${missing[*]}: install these packages (Debian 12) as root" >&2
    exit 1
fi
