#!/bin/bash
# The processes of one node, started by torchrun; run it on every node with the same arguments.
#
#   NNODES=2 NPROC=4 RENDEZVOUS=node0:29500 bash configs/cluster/torchrun.sh --config real.yaml
#
# On one node nothing need be set but NPROC. After a failure torchrun starts all processes again,
# up to MAX_RESTARTS times, and the run goes on where it was.

set -euo pipefail

NNODES="${NNODES:-1}"
NPROC="${NPROC:-1}"
RENDEZVOUS="${RENDEZVOUS:-localhost:0}"

exec torchrun --nnodes "${NNODES}" --nproc-per-node "${NPROC}" \
  --rdzv-backend c10d --rdzv-endpoint "${RENDEZVOUS}" --rdzv-id "${RUN_ID:-dmole}" \
  --max-restarts "${MAX_RESTARTS:-3}" \
  -m dmole fit "$@" \
  --trainer.num_nodes "${NNODES}" \
  --trainer.devices "${NPROC}" \
  --trainer.strategy ddp \
  --ckpt_path auto
