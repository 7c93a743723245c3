#!/bin/sh
# Collect the seeds of the fuzz targets from runtimes/conformance: seeds.sh FOLDER
set -eu
bundles=$(dirname "$0")/../../conformance/bundles
mkdir -p "$1/manifest" "$1/shard_header" "$1/golden" "$1/graph"
for bundle in "$bundles"/*; do
    name=$(basename "$bundle")
    cp "$bundle/manifest.json" "$1/manifest/$name"
    head -c 4096 "$bundle"/experts-00001-of-*.safetensors > "$1/shard_header/$name"
    for file in "$bundle"/golden*.safetensors; do cp "$file" "$1/golden/$name-$(basename "$file")"; done
    for file in "$bundle"/*.onnx; do cp "$file" "$1/graph/$name-$(basename "$file")"; done
done
