#!/bin/bash
# A sequence of tasks on two nodes with four GPUs each, queued again until it is done.
#
#   sbatch configs/cluster/slurm.sh --config real.yaml --data.data_root /data/real
#
# All words behind the script go to `dmole fit`. Adapt the lines marked <-.
#SBATCH --job-name=dmole
#SBATCH --nodes=2                 # <- as trainer.num_nodes
#SBATCH --ntasks-per-node=4       # <- one task a GPU, as trainer.devices
#SBATCH --gpus-per-node=4         # <-
#SBATCH --cpus-per-task=8         # <- loader workers and a core for the process itself
#SBATCH --mem=0                   # <-
#SBATCH --time=24:00:00           # <-
#SBATCH --requeue                 # after a failure of the node too
#SBATCH --signal=SIGUSR1@120      # two minutes before the limit: save, queue again, end
#SBATCH --open-mode=append        # one log over all parts of the run
#SBATCH --output=%x-%j.out

set -euo pipefail

# `auto` starts the run, and goes on with it when the job comes back.
srun --kill-on-bad-exit=1 dmole fit "$@" \
  --trainer.accelerator gpu \
  --trainer.num_nodes "${SLURM_NNODES}" \
  --trainer.devices "${SLURM_NTASKS_PER_NODE}" \
  --trainer.strategy ddp \
  --trainer.enable_progress_bar false \
  --ckpt_path auto
