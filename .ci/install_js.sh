#!/usr/bin/env bash
# Install Chromium from Debian, which `make test-js` needs, if there is none. Needs root or sudo for that.
set -euo pipefail

command -v chromium > /dev/null && exit 0
[ -z "${CHROMIUM:-}" ] || exit 0

echo "== installing chromium"
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo --non-interactive); fi
install() {
    "${as_root[@]}" apt-get update --quiet --quiet &&
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --quiet --quiet --yes --no-install-recommends \
            chromium > /dev/null
}
if ! install; then
    echo ".ci/install_js.sh: could not install chromium: install it as root, or set CHROMIUM to the path of a Chromium" >&2
    exit 1
fi
