#!/bin/bash
# One run on all GPUs of one or more machines; the same line on each, with its own NODE_RANK. HEAD is the first machine's address.
#
#   NODES=2 NODE_RANK=0 HEAD=10.0.0.1 DATA="shards:s3://bucket/train-{000..063}.tar" RUN=/shared/runs/prior \
#     bash docs/recipes/nodes.sh
#
# RUN, TOKENIZER, TEXT and T2I_CACHE are folders that all machines share: one process writes, all read. The same line resumes, and
# Ctrl-C on any machine saves first.
set -euo pipefail

NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
HEAD=${HEAD:-127.0.0.1}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export T2I_CACHE=${T2I_CACHE:-$(dirname "$RUN")/cache}
export OMP_WAIT_POLICY=passive

exec torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" \
  --master_addr "$HEAD" --master_port "${PORT:-29500}" \
  -m t2i.cli train prior --config prior-xl --data "$DATA" \
  --set tokenizer.path="${TOKENIZER:-runs/vqvae}" --set text.path="${TEXT:-openai/clip-vit-base-patch32}" --run-dir "$RUN"
