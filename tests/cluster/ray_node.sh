#!/usr/bin/env bash
# One node of a Ray cluster on this machine, in the foreground:  ray_node.sh DIR head | ray_node.sh DIR NAME
# DIR has a short path (Ray's sockets lie below it) and holds all that Ray writes. Every other node than the head is a
# machine of its own as far as Linux goes: its processes all end with this one, and DIR/private is a disk of its own.
set -euo pipefail
dir=$1 name=$2
export RAY_USAGE_STATS_ENABLED=0 RAY_enable_metrics_collection=0
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3
mkdir -p "$dir/private"
common=(--block --disable-usage-stats --num-cpus=2 --object-store-memory=80000000)
if [ "$name" = head ]; then
    exec ray start --head --port=0 --include-dashboard=false --temp-dir="$dir/ray" "${common[@]}"
fi
address=$(cat "$dir/ray/ray_current_cluster")
own='mount -t tmpfs none "$1" && shift && exec "$@"'
exec unshare --mount --pid --fork --kill-child --mount-proc \
    bash -c "$own" - "$dir/private" ray start --address="$address" --resources="{\"$name\": 1}" "${common[@]}"
