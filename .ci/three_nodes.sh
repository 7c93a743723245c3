#!/usr/bin/env bash
# Export a checkpoint by a Ray cluster of three nodes, each in a network namespace of its own, cut off one of them in the
# middle, and compare the shards with those of one process. Needs root. Usage: .ci/three_nodes.sh CHECKPOINT FOLDER
set -euo pipefail
checkpoint=$(realpath "$1"); folder=$(realpath -m "$2"); cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin; bridge=molkv-br; net=10.213.77
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_TMPDIR; RAY_AUTH_TOKEN=$(openssl rand -hex 32); RAY_TMPDIR=$(mktemp -d /tmp/rayXXXX)
# A node that does not answer for six seconds counts as dead; the default is 30 seconds.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3

node() { ip netns exec "molkv-$1" "${@:2}"; }

end() {
  for n in 1 2 3; do
    ip netns pids "molkv-$n" 2>/dev/null | xargs -r kill -9 || true
    ip netns del "molkv-$n" 2>/dev/null || true
  done
  ip link del $bridge 2>/dev/null || true
  rm -rf "$RAY_TMPDIR"
}
trap end EXIT
end; mkdir -p "$RAY_TMPDIR" "$folder"

ip link add $bridge type bridge; ip link set $bridge up
for n in 1 2 3; do
  ip netns add "molkv-$n"
  ip link add "molkv-v$n" type veth peer name eth0 netns "molkv-$n"
  ip link set "molkv-v$n" master $bridge up
  node "$n" ip link set lo up
  node "$n" ip addr add "$net.$n/24" dev eth0
  node "$n" ip link set eth0 up
done

start() { node "$1" "$bin/ray" start --node-ip-address "$net.$1" --num-cpus 1 --object-store-memory 80000000 "${@:2}" > "$folder/node-$1.log"; }
start 1 --head --port 6379 --include-dashboard false
start 2 --address "$net.1:6379"
start 3 --address "$net.1:6379"

size=${SHARD_SIZE:-1MB}
"$bin/molkv-export" export "$checkpoint" "$folder/alone" --shard-size "$size" -q --force
node 1 "$bin/molkv-export" export "$checkpoint" "$folder/cluster" --shard-size "$size" --engine ray --address "$net.1:6379" --force &
export=$!
until [ "$(grep -o sha256 "$folder/.cluster.partial/export-in-progress.json" 2>/dev/null | wc -l)" -ge 2 ]; do sleep 0.1; done
echo "== node 3 is cut off, after $(grep -o '"experts-[^"]*' "$folder/.cluster.partial/export-in-progress.json" | wc -l) shards"
ip link set molkv-v3 down
wait $export
cmp <(cd "$folder/alone" && sha256sum experts-*) <(cd "$folder/cluster" && sha256sum experts-*)
echo "== the same sha256 of $(ls "$folder/cluster" | grep -c experts-) shards"
