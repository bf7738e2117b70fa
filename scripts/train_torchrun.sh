#!/usr/bin/env bash
# Trains on all GPUs of one machine. Arguments are those of `clip-la train`:
#   scripts/train_torchrun.sh --config configs/train/vit_b16.yaml --data.shards '/data/{00000..00099}.tar' --out runs/b16
# GPUS=2 in front takes so many; on a machine without GPUs it must stand there, for so many processes.
# Ctrl-C saves and stops; `scripts/train_torchrun.sh --resume --out runs/b16` goes on.
set -euo pipefail
exec torchrun --standalone --nproc_per_node "${GPUS:-gpu}" -m clip_la train "$@"
