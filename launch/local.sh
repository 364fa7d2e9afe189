#!/usr/bin/env bash
# Several processes on this machine, joined into one run.
#
#   launch/local.sh 2 --config=configs/exp2.py            two processes, one pool
#   PORT=29501 launch/local.sh 4 --config=configs/exp2.py --workdir=runs/four
#
# Each process gets one CPU device. The output of process 0 is shown, that of the others goes to files
# local-1.log and so on in LOGS. If one fails or this script is stopped, all are.
set -uo pipefail
count=${1:?"usage: launch/local.sh PROCESSES --config=FILE [options]"}
shift
port=${PORT:-29500}
python=${PYTHON:-python}
logs=${LOGS:-$(mktemp -d)}
pids=()

stop() {
  kill -TERM "${pids[@]}" 2>/dev/null
  # A process that lost its peers may wait for them: give it time to save, then end it.
  (sleep 40 && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
  reserve=$!
}
trap stop TERM INT

for ((rank = 0; rank < count; rank++)); do
  command=("$python" -m additive_jax.launch --devices=1 "$@"
    --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$rank")
  if [ "$rank" -eq 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/local-$rank.log" 2>&1 &
  fi
  pids+=($!)
done

code=0
for ((ended = 0; ended < count; ended++)); do
  wait -n -p pid "${pids[@]}"
  status=$?
  while [ -z "${pid:-}" ] && [ "$status" -gt 128 ]; do # a signal came, not the end of a process
    wait -n -p pid "${pids[@]}"
    status=$?
  done
  if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$status
    stop
  fi
  left=()
  for other in "${pids[@]}"; do [ "$other" = "$pid" ] || left+=("$other"); done
  pids=("${left[@]+"${left[@]}"}")
done
[ -z "${reserve:-}" ] || kill "$reserve" 2>/dev/null
[ "$code" -eq 0 ] || echo "a process ended with code $code; output of the others: $logs" >&2
exit "$code"
