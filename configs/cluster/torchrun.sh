#!/bin/bash
# Starts the processes of one node with torchrun; run it on every node with the same arguments.
#
#   NNODES=2 NPROC=4 RENDEZVOUS=node0:29500 bash configs/cluster/torchrun.sh --config real.yaml
#
# On a single node, only NPROC must be set. After a failure, torchrun restarts all processes, up to
# MAX_RESTARTS times, and the run resumes from its last checkpoint.

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
  --ckpt_path auto
