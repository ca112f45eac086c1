#!/usr/bin/env bash
# Train on several machines: sbatch scripts/slurm.sh --model LitTransfer --data FOLDER --max_epochs 30
# Set the number of machines and GPUs in the three lines marked (*). This script gives both numbers to fit.py.
#SBATCH --job-name=fit
#SBATCH --nodes=2                # (*)
#SBATCH --ntasks-per-node=4      # (*) one process per GPU
#SBATCH --gpus-per-node=4        # (*)
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120        # sent 120 s before the time is up: fit.py saves a resume point and requeues the job
set -euo pipefail

# sbatch runs a copy of this script in another folder. The project is in the folder where sbatch was typed, and all
# machines must have access to it.
cd "${SLURM_SUBMIT_DIR:?submit with sbatch}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# srun sends the signal to fit.py, which exits with 128 + the signal's number. The requeued job continues the run.
exec srun --kill-on-bad-exit=1 .venv/bin/python scripts/fit.py \
    --accelerator gpu --strategy ddp \
    --num_nodes "$SLURM_JOB_NUM_NODES" --devices "$SLURM_NTASKS_PER_NODE" \
    --resume auto "$@"
