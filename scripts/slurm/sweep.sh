#!/usr/bin/env bash
# Run the jobs of a sweep on SLURM, one GPU each. Install with pip install -e '.[slurm]'; then on a login node:
#     scripts/slurm/sweep.sh model.num_experts=1,2,4,8 seed=0,1,2
# The command waits for the jobs and lists the failed ones. If it is repeated, it runs only unfinished jobs.
set -euo pipefail
exec python -m mmoe.train -m hydra/launcher=submitit_slurm \
  hydra.launcher.partition="${PARTITION:-gpu}" \
  hydra.launcher.gpus_per_node=1 \
  hydra.launcher.cpus_per_task=4 \
  hydra.launcher.timeout_min="${MINUTES:-60}" \
  hydra.launcher.array_parallelism="${AT_ONCE:-32}" \
  hydra.sweep.dir="${SWEEP:-runs/census/sweep}" \
  experiment=census trainer=gpu "$@"
