#!/usr/bin/env bash
# Train on several machines: sbatch scripts/slurm.sh --model LitTransfer --data FOLDER --max_epochs 30
# Change the numbers of machines and GPUs in the three lines marked (*); fit.py is told of them below.
#SBATCH --job-name=fit
#SBATCH --nodes=2                # (*)
#SBATCH --ntasks-per-node=4      # (*) one process for each GPU
#SBATCH --gpus-per-node=4        # (*)
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120        # two minutes before the end: save a resume point, back into the queue
set -euo pipefail

# Started by sbatch, this is a copy elsewhere: the project is where sbatch was typed. All machines have to see it.
cd "${SLURM_SUBMIT_DIR:?submit with sbatch}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# srun passes signals on; fit.py exits with 128 + signal. The same command goes on where it was.
exec srun --kill-on-bad-exit=1 .venv/bin/python scripts/fit.py \
    --accelerator gpu --strategy ddp \
    --num_nodes "$SLURM_JOB_NUM_NODES" --devices "$SLURM_NTASKS_PER_NODE" \
    --resume auto "$@"
