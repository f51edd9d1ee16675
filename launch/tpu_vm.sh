#!/usr/bin/env bash
# A TPU VM pod slice: the same command on every host; the hosts find each other.
#
#   TPU=my-slice ZONE=us-west4-a CONFIG=pretrain_cc4m WORKDIR=/shared/runs/cc4m launch/tpu_vm.sh [--config.KEY=VALUE ...]
#
# TPU, ZONE  from `gcloud compute tpus tpu-vm list`; every host needs `pip install '.[tpu]'`
# VILEM      path of the command on the hosts if it is not on PATH
# CONFIG     a packaged config's name, or a file that is on every host
# WORKDIR    the run's folder, on a disk that all hosts share (Filestore, NFS)
#
# GCLOUD     the gcloud command with options: GCLOUD="gcloud --verbosity=debug"
set -euo pipefail

exec ${GCLOUD:-gcloud} compute tpus tpu-vm ssh "${TPU:?}" --zone="${ZONE:?}" \
  --worker=all --command="${VILEM:-vilem} train --distributed=on \
  --config=${CONFIG:?} --workdir=${WORKDIR:?} $*"
