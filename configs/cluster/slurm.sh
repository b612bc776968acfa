#!/bin/bash
# A sequence of tasks on two nodes with four GPUs each, requeued until it is finished.
#
#   sbatch configs/cluster/slurm.sh --config real.yaml --data.data_root /data/real
#   sbatch --nodes 8 --ntasks-per-node 8 --gpus-per-node 8 configs/cluster/slurm.sh \
#     --config coin.yaml --config hardware/64x80gb.yaml --data.data_root /data/coin
#
# All arguments of the script are passed to `dmole fit`; `dmole plan` with the same ones says whether
# the run fits. Adapt the lines marked <-. With CONTAINER=dmole.sif (configs/cluster/dmole.def) the
# run is inside it, and BIND names the folders that it sees, such as /data.
#SBATCH --job-name=dmole
#SBATCH --nodes=2                 # <- equal to trainer.num_nodes
#SBATCH --ntasks-per-node=4       # <- one task per GPU, equal to trainer.devices
#SBATCH --gpus-per-node=4         # <-
#SBATCH --cpus-per-task=8         # <- loader workers and one core for the process
#SBATCH --mem=0                   # <-
#SBATCH --time=24:00:00           # <-
#SBATCH --requeue                 # also after a failure of the node
#SBATCH --signal=SIGUSR1@120      # two minutes before the limit: save, requeue, exit
#SBATCH --open-mode=append        # one log for all parts of the run
#SBATCH --output=%x-%j.out

set -euo pipefail

run=(dmole)
if [[ -n "${CONTAINER:-}" ]]; then
  run=(apptainer run --nv --bind "${BIND:-${PWD}}" "${CONTAINER}")
fi

# `auto` starts the run, and resumes it when the job is requeued. The strategy is that of the configs;
# without one, several devices use ddp.
srun --kill-on-bad-exit=1 "${run[@]}" fit "$@" \
  --trainer.accelerator gpu \
  --trainer.num_nodes "${SLURM_NNODES}" \
  --trainer.devices "${SLURM_NTASKS_PER_NODE}" \
  --trainer.enable_progress_bar false \
  --ckpt_path auto
