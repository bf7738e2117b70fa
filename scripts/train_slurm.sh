#!/usr/bin/env bash
# Trains on several machines under SLURM, one process a GPU. Arguments are those of `clip-la train`:
#   sbatch --nodes 4 scripts/train_slurm.sh --config configs/train/vit_b16.yaml --data.shards '/data/{00000..00099}.tar' --out runs/b16
# With --resume the same command starts a run and goes on with it, so a requeued job needs no other. SLURM's SIGTERM
# before the time limit makes the run save and stop.
#SBATCH --job-name=clip-la
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
exec srun --kill-on-bad-exit=1 clip-la train --resume "$@"
