#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice; run it where gcloud is set up.
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh --config=configs/exp2.py --workdir=/mnt/shared/runs/exp2
#
# The repository is expected in ~/additive_jax on every host, installed with its tpu extra. Stopping this script (TERM, Ctrl-C, HUP) lets all
# hosts save. A run that was stopped on the hosts, or lost one, is started again up to RESTARTS times (10).
#
# Exit codes: as of the run: 0 done; 2 a mistake in what was asked; 75 stopped: the same command goes on.
set -uo pipefail
: "${TPU:?"TPU=name of the pod slice"}" "${ZONE:?"ZONE=its zone"}"
stopped=

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="cd ~/additive_jax || exit 2; $1"
}

# The process of a host is the one whose number it left, if that still is one of ours. It may take a while to save.
end='
  pid=$(cat run.pid 2>/dev/null) && grep -q additive_jax.launch "/proc/$pid/cmdline" 2>/dev/null || exit 0
  kill -TERM "$pid"
  for ((i = 0; i < 600; i++)); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.2; done
  kill -KILL "$pid"
'
trap 'stopped=yes; on_all "$end"' TERM INT HUP

command="echo \$\$ >run.pid; exec python -m additive_jax.launch $(printf '%q ' "$@")--coordinator=auto --wait=120"
for ((attempt = 0; ; attempt++)); do
  on_all "$command" &
  run=$!
  while wait "$run"; code=$?; [ "$code" -gt 128 ] && kill -0 "$run" 2>/dev/null; do
    : # a signal ended the wait, not the run
  done
  # 75: stopped, everything saved; over 128: killed, or the connection was lost.
  [ "$code" -le 128 ] || code=75
  [ "$code" -eq 75 ] && [ -z "$stopped" ] && [ "$attempt" -lt "${RESTARTS:-10}" ] || break
  echo "start $((attempt + 1)) of ${RESTARTS:-10} more" >&2
  on_all "$end"
done
exit "$code"
