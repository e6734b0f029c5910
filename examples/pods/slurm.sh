#!/usr/bin/env bash
# Slurm with GPUs: one process a GPU, on nodes of 8. Submit it from the repository:
#
#   sbatch --nodes=4 examples/pods/slurm.sh train.py --config=configs/train/1b.py --workdir=/shared/1b \
#     --config.mesh.data=4 --config.mesh.fsdp=8
#
# JAX reads its place in the job from Slurm's variables, and takes the GPU with the number of the process on its node. So do
# not set --gpus-per-task. For one process a node set --ntasks-per-node=1 and export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7.
# Two minutes before the time limit, and when it is preempted, the job saves and goes back into the queue, where the same
# command resumes. After any other failure too, RESTARTS times (20). A mistake in the config (exit code 2) ends it.
#SBATCH --job-name=lmcraft
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2

# All processes end together with one exit code. --wait is for those that are left when one was killed.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=0 --wait=120 "${PYTHON:-.venv/bin/python}" "$@"
code=$?
if ((code != 0 && code != 2 && ${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-20})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
