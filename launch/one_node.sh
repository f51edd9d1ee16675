#!/usr/bin/env bash
# One machine: one process trains on all of its GPUs or TPU chips.
#
#   CONFIG=mine.py WORKDIR=runs/mine launch/one_node.sh [--config.KEY=VALUE ...]
#
# CONFIG   name of a packaged config, or your file
# WORKDIR  the run's folder; rerun the same command to resume
# VILEM    path of the command if it is not on PATH
set -euo pipefail

exec "${VILEM:-vilem}" train --distributed=off \
  --config="${CONFIG:?}" --workdir="${WORKDIR:?}" "$@"
