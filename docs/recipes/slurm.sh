#!/bin/bash
# One run on two machines of eight GPUs by Slurm:
#
#   DATA="shards:/shared/cc12m/{00000..01242}.tar" RUN=/shared/runs/prior sbatch docs/recipes/slurm.sh
#
# Two minutes before the time is over, or where the job is pre-empted, TERM saves the run, and the job queues itself again; the same
# command resumes. torchrun starts the processes, so there is one task a machine.
#SBATCH --job-name=t2i-prior
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.out
set -uo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD DATA RUN
export T2I_CACHE=${T2I_CACHE:-$(dirname "$RUN")/cache}
export OMP_WAIT_POLICY=passive

srun bash -c 'exec torchrun --nnodes "$SLURM_JOB_NUM_NODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
  --master_addr "$HEAD" --master_port 29500 \
  -m t2i.cli train prior --config prior-xl --data "$DATA" \
  --set tokenizer.path="${TOKENIZER:-runs/vqvae}" --set text.path="${TEXT:-openai/clip-vit-base-patch32}" --run-dir "$RUN"'
status=$?

# a run that was stopped says so in this file until it goes on
if [ -f "$RUN/STOPPED" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
