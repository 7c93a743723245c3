#!/usr/bin/env bash
# Run a command with a GPU for WebGPU: .ci/with_gpu.sh COMMAND [ARGUMENT ...]
# On a machine without a GPU, the command sees a made-up graphics card in /sys/class, because ONNX Runtime looks there for
# devices. WebGPU then computes on the CPU with SwiftShader, which is a part of Debian's package chromium.
set -euo pipefail
if compgen -G "/sys/class/drm/card[0-9]*" > /dev/null; then
  exec "$@"
fi
swiftshader=/usr/lib/chromium
test -e $swiftshader/vk_swiftshader_icd.json || { echo "error: no GPU, and no SwiftShader: apt-get install chromium" >&2; exit 1; }
export LD_LIBRARY_PATH=$swiftshader VK_ICD_FILENAMES=$swiftshader/vk_swiftshader_icd.json
class=$(mktemp -d)
trap 'rm -rf "$class"' EXIT
device="$class/0000:00:09.0"
mkdir -p "$class/drm/card0" "$device"
echo 0x1af4 > "$device/vendor"
echo 0x1050 > "$device/device"
ln -s "$device" "$class/drm/card0/device"
# The command runs in a mount namespace of its own, which needs no rights of root.
# shellcheck disable=SC2016
unshare --map-root-user --mount bash -c 'mount --bind "$0" /sys/class && exec "$@"' "$class" "$@"
