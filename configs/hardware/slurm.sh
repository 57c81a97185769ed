#!/usr/bin/env bash
# Two machines of eight GPUs under SLURM: sbatch configs/hardware/slurm.sh --data.root DIR [more options of fit]
# Ninety seconds before its time is up each process gets SIGUSR1: the fit writes a checkpoint and the job is queued
# again. --ckpt_path last then resumes the newest run of this experiment and method, or starts one.
#SBATCH --job-name=duality-ssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

# a process that fails ends the others
srun --kill-on-bad-exit=1 \
  duality-ssl fit -c configs/experiments/imagenet_vicreg.yaml -c configs/hardware/multi_node.yaml \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --data.batch_size 128 \
  --ckpt_path last "$@"
