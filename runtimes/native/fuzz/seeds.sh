#!/bin/sh
# Collect the seeds of the fuzz targets from runtimes/conformance: seeds.sh FOLDER
set -eu
bundles=$(dirname "$0")/../../conformance/bundles
for target in golden graph json manifest shard_header tokenizer; do mkdir -p "$1/$target"; done
for bundle in "$bundles"/*; do
    name=$(basename "$bundle")
    cp "$bundle/manifest.json" "$1/manifest/$name"
    cp "$bundle/manifest.json" "$1/json/$name"
    head -c 4096 "$bundle"/experts-00001-of-*.safetensors > "$1/shard_header/$name"
    for file in "$bundle"/golden*.safetensors; do cp "$file" "$1/golden/$name-$(basename "$file")"; done
    for file in "$bundle"/*.onnx; do cp "$file" "$1/graph/$name-$(basename "$file")"; done
done
# fuzz_tokenizer.cpp defines the bytes before the file: 6 bytes of a text, or of ids.
for file in "$bundles"/*/tokenizer.json; do
    name=$(basename "$(dirname "$file")")
    { printf '\014hello '; cat "$file"; } > "$1/tokenizer/$name-encode"
    { printf '\015hello '; cat "$file"; } > "$1/tokenizer/$name-decode"
done
