#!/usr/bin/env bash
# A sweep in N independent processes on this machine, then their merge.
#
#   launch/shards.sh 2 --config=configs/exp1.py --workdir=runs/exp1
#
# The processes share nothing but the run directory: one that dies loses only its shard, and the same command goes on.
set -euo pipefail
count=${1:?"usage: launch/shards.sh SHARDS --config=FILE --workdir=DIR [options]"}
shift
python=${PYTHON:-python}
pids=()
trap 'for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done' TERM INT
for ((shard = 0; shard < count; shard++)); do
  "$python" -m additive_jax.launch "$@" --config.shard="$shard/$count" --devices=1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
exec "$python" -m additive_jax.launch "$@"
