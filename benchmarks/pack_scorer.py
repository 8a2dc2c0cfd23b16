"""Copies a dual encoder of `t2i train align --config align-scorer` into the package as the embedded scorer.

python benchmarks/pack_scorer.py runs/scorer
"""

import sys
from pathlib import Path

import torch

from t2i.align.frozen import load_dual_encoder
from t2i.weights import scorer_dir

if __name__ == "__main__":
    encoder = load_dual_encoder(Path(sys.argv[1]))
    encoder.save(scorer_dir(), torch.float16)
    print(f"{scorer_dir()}: {load_dual_encoder(scorer_dir()).digest()}")
