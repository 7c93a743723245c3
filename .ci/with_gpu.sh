#!/usr/bin/env bash
# Run a command with a GPU for WebGPU: .ci/with_gpu.sh COMMAND [ARGUMENT ...]
# On a machine without a GPU, or with SOFTWARE_GPU=1, the command sees a made-up graphics card in /sys/class, because
# ONNX Runtime looks there for devices. WebGPU then computes on the CPU with SwiftShader, a part of Debian's chromium.
set -euo pipefail
if [ "${SOFTWARE_GPU:-0}" != 1 ] && compgen -G "/sys/class/drm/card[0-9]*" > /dev/null; then
  exec "$@"
fi
swiftshader=/usr/lib/chromium
if ! [ -e $swiftshader/vk_swiftshader_icd.json ]; then
  echo "error: found no GPU and no SwiftShader; apt-get install chromium" >&2
  exit 1
fi
if ! unshare --map-root-user --mount true; then
  echo "error: found no GPU, and this user may not make a mount namespace, which SwiftShader needs here" >&2
  exit 1
fi
export LD_LIBRARY_PATH=$swiftshader VK_ICD_FILENAMES=$swiftshader/vk_swiftshader_icd.json
class=$(mktemp -d)
trap 'rm -rf "$class"' EXIT
device="$class/0000:00:09.0"
mkdir -p "$class/drm/card0" "$device"
echo 0x1af4 > "$device/vendor"
echo 0x1050 > "$device/device"
ln -s "$device" "$class/drm/card0/device"
# shellcheck disable=SC2016
unshare --map-root-user --mount bash -c 'mount --bind "$0" /sys/class && exec "$@"' "$class" "$@"
