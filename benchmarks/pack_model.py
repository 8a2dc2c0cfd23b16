"""Copies a trained run into the package, as a model that samples without training.

    python benchmarks/pack_model.py runs/prior prior

A model that was trained with the text encoder of the package reads the one beside it; any other model keeps its own.
"""

import shutil
import sys
from pathlib import Path

import torch

import t2i
from t2i.pipeline import TextToImagePipeline
from t2i.text import load_encoder
from t2i.weights import shared_text_encoder

if __name__ == "__main__":
    run, name = sys.argv[1:]
    pipe = TextToImagePipeline.from_pretrained(run)
    place = Path(t2i.__file__).parent / "weights" / name
    shutil.rmtree(place, ignore_errors=True)
    pipe.save_pretrained(place, license="apache-2.0", dtype=torch.bfloat16)
    if load_encoder(shared_text_encoder()).digest() == pipe.text_encoder.digest():
        shutil.rmtree(place / "text_encoder")
    for path in place.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    TextToImagePipeline.from_pretrained(name)
    print(f"{place}: {sum(path.stat().st_size for path in place.rglob('*') if path.is_file()) / 2**20:.1f} MiB")
