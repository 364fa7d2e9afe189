#!/usr/bin/env bash
# Several processes on this machine, joined into one run.
#
#   launch/local.sh 2 --config=exp2                       two processes, one pool
#   launch/local.sh --restarts=3 2 --config=exp2          started again, up to three times, when one is lost
#   PORT=29501 launch/local.sh 4 --config=exp2 --workdir=runs/four
#
# Each process gets one CPU device. The output of process 0 is shown, that of the others goes to files
# local-1.log and so on in LOGS. If this script is stopped, all are.
#
# Exit codes: 0 done; 75 stopped, or a process was lost: the same command goes on; else that of the process that
# failed, 2 for a mistake in what was asked.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/waiting.sh"
restarts=0
if [[ ${1:-} == --restarts=* ]]; then
  restarts=${1#*=}
  shift
fi
usage='usage: launch/local.sh [--restarts=N] PROCESSES --config=NAME [options]'
count=${1:?"$usage"}
[[ $restarts =~ ^[0-9]+$ && $count =~ ^[1-9][0-9]*$ ]] || { echo "error: restarts $restarts, processes $count: $usage" >&2; exit 2; }
shift
port=${PORT:-29500}
python=${PYTHON:-python}
logs=${LOGS:-$(mktemp -d)}
pids=()
stopped=

# One that does not end within a minute is killed.
stop() {
  stopped=yes
  kill -TERM "${pids[@]}" 2>/dev/null
  (sleep 60 && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
  reserve=$!
}
trap stop TERM INT HUP

start() {
  pids=()
  for ((rank = 0; rank < count; rank++)); do
    command=("$python" -m additive_jax.launch --devices=1 "$@"
      --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$rank")
    if [ "$rank" -eq 0 ]; then
      "${command[@]}" &
    else
      "${command[@]}" >>"$logs/local-$rank.log" 2>&1 &
    fi
    pids+=($!)
  done
}

for ((attempt = 0; ; attempt++)); do
  start "$@"
  wait_for_all # they end when one of them is lost
  [ "$code" -eq 75 ] && [ -z "$stopped" ] && [ "$attempt" -lt "$restarts" ] || break
  echo "start $((attempt + 1)) of $restarts more" >&2
done
[ -z "${reserve:-}" ] || kill "$reserve" 2>/dev/null
[ "$code" -eq 0 ] || echo "the processes ended with code $code; output of the others: $logs" >&2
exit "$code"
