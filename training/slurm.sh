#!/bin/bash
# Any recipe on a cluster, one process per GPU: sbatch training/slurm.sh RECIPE OUT DATA [DATA ...]
# Run again with the same words, it goes on where it was stopped. Adapt the lines below to the cluster.
#SBATCH --job-name=pacs-node-training
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

recipe=${1:?RECIPE} out=${2:?OUT} && shift 2
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?start me with sbatch}" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-1}
resume=()
[ -e "$out/checkpoint.pt" ] && resume=(--resume)

# srun does not inherit --cpus-per-task (Slurm 22.05 and later): without it all processes would share one core.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" .venv/bin/python -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --nproc-per-node="$gpus" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
    -m training.train --recipe "$recipe" --data "$@" --out "$out" \
    --workers "$((SLURM_CPUS_PER_TASK / gpus - 1))" "${resume[@]}"
