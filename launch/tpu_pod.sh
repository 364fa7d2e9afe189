#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice; run it where gcloud is set up.
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh --config=configs/exp2.py --workdir=/mnt/shared/runs/exp2
#
# The repository is expected in ~/additive_jax on every host, installed with its tpu extra.
set -euo pipefail
: "${TPU:?"TPU=name of the pod slice"}" "${ZONE:?"ZONE=its zone"}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ~/additive_jax && python -m additive_jax.launch $(printf '%q ' "$@") --coordinator=auto"
