#!/usr/bin/env bash
# One machine: one process trains on all GPUs, or on the TPU chips, that it has.
#
#   CONFIG=mine.py WORKDIR=runs/mine launch/one_node.sh [--config.KEY=VALUE ...]
#
# CONFIG   a packaged config's name or a file of your own
# WORKDIR  the run's folder; the same command again resumes it
# VILEM    the command, where it is not on PATH
set -euo pipefail

exec "${VILEM:-vilem}" train --distributed=off \
  --config="${CONFIG:?}" --workdir="${WORKDIR:?}" "$@"
