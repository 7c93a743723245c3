#!/usr/bin/env bash
# Install what `make test-js` needs beside Node, and the system lacks, from Debian. Needs root or sudo for that.
set -euo pipefail

missing=()
[ -n "${CHROMIUM:-}" ] || command -v chromium > /dev/null || missing+=(chromium)
# Debian has nginx where the PATH of ordinary users does not lead.
PATH="$PATH:/usr/sbin" command -v nginx > /dev/null || missing+=(nginx)
command -v openssl > /dev/null || missing+=(openssl)
[ "${#missing[@]}" -gt 0 ] || exit 0

echo "== installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo --non-interactive); fi
install() {
    "${as_root[@]}" apt-get update --quiet --quiet &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes \
            --no-install-recommends "${missing[@]}" > /dev/null
}
if ! install; then
    echo ".ci/install_js.sh: could not install ${missing[*]}: install them as root (or set CHROMIUM to the path of a" \
        "Chromium)" >&2
    exit 1
fi
