#!/usr/bin/env bash
# A sweep in N independent processes on this machine, then their merge.
#
#   launch/shards.sh 2 --config=configs/exp1.py --workdir=runs/exp1
#
# The processes share nothing but the run directory: one that dies loses only its shard, and the same command goes on.
#
# Exit codes: 0 done; 75 stopped, or a process was killed: the same command goes on; else that of the shard that failed,
# 2 for a mistake in what was asked.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/waiting.sh"
count=${1:?"usage: launch/shards.sh SHARDS --config=FILE --workdir=DIR [options]"}
shift
python=${PYTHON:-python}
pids=()
stopped=
trap 'stopped=yes; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP
for ((shard = 0; shard < count; shard++)); do
  "$python" -m additive_jax.launch --devices=1 "$@" --config.shard="$shard/$count" &
  pids+=($!)
done

wait_for_all
[ "$code" -ne 0 ] || [ -z "$stopped" ] || code=75
[ "$code" -eq 0 ] || exit "$code"
exec "$python" -m additive_jax.launch --devices=1 "$@"
