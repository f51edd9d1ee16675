#!/usr/bin/env bash
# Google Kubernetes Engine with xpk, which creates a JobSet and queues it with Kueue.
#
#   DEVICE=tpu TYPE=v5litepod-16 ... launch/gke_xpk.sh [xpk's own options]
#   DEVICE=gpu TYPE=h100-80gb-8 NODES=4 ... launch/gke_xpk.sh [xpk's own options]
#
# DEVICE          tpu (xpk's --tpu-type) or gpu (--device-type)
# TYPE            xpk's name of it
# NODES           GPU nodes, or TPU slices; 1 by default
# CLUSTER, PROJECT, ZONE   of a cluster that `xpk cluster create` created
# IMAGE           built from launch/Dockerfile, in a registry that the cluster can read
# NAME            of the workload; a new one for each submission
# CONFIG, WORKDIR as paths in the container; WORKDIR on a volume that all pods share
#                 (xpk's --storage)
#
# An evicted pod receives SIGTERM; the run saves and exits with code 75. After that code
# and code 3 (another pod is gone) JobSet restarts all pods, up to 100 times, and they
# resume; after an error (codes 1 and 2) it does not. `exec` passes xpk's SIGTERM on to
# the program. --dry-run shows what xpk would do.
set -euo pipefail

train="exec vilem train --stop-code=75 --config=${CONFIG:?} --workdir=${WORKDIR:?}"
case "${DEVICE:?}" in
  tpu)
    devices=(--tpu-type="${TYPE:?}" --num-slices="${NODES:-1}")
    ;;
  gpu)
    devices=(--device-type="${TYPE:?}" --num-nodes="${NODES:-1}")
    # xpk's pods bring these variables; they are read there, not here.
    # shellcheck disable=SC2016
    train+=' --coordinator=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT'
    # shellcheck disable=SC2016
    train+=' --num-processes=$NNODES --process-id=$NODE_RANK'
    ;;
esac

exec xpk workload create \
  --cluster="${CLUSTER:?}" --project="${PROJECT:?}" --zone="${ZONE:?}" \
  --workload="${NAME:?}" --docker-image="${IMAGE:?}" "${devices[@]}" \
  --max-restarts=100 --restart-on-exit-codes=3,75 \
  --termination-grace-period-seconds=120 \
  --command="$train" "$@"
