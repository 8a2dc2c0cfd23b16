"""Regenerates the images of README.md and docs/ that show what the shipped models sample.

    python benchmarks/figures.py

`docs/strip.png`: one row of samples by the shipped prior and one by the shipped GAN, for the first held-out captions of
shapes-3, seed 0, the first sample of each. Takes about 20 CPU seconds.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from t2i.data import View, open_dataset
from t2i.images import grid
from t2i.pipeline import TextToImagePipeline
from t2i.weights import shipped

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS = 6
ENLARGED = 2


def main() -> None:
    captions = open_dataset("shapes-3", "heldout", View(64, limit=COLUMNS)).captions
    prompts = [options[0] for options in captions]
    rows: list[np.ndarray] = []
    for name in ("prior", "cgan"):
        images = TextToImagePipeline.from_pretrained(shipped()[name])(prompts, seed=0).images
        rows += [np.asarray(image.resize((64 * ENLARGED,) * 2, Image.Resampling.BICUBIC)) for image in images]
    sheet = grid(rows, [*prompts, *([""] * COLUMNS)], columns=COLUMNS)
    side = 64 * ENLARGED
    last_row = (sheet.height - 6) // 2 + 6  # rows are equally high; the last one has no captions
    sheet.crop((0, 0, sheet.width, last_row + side + 6)).save(DOCS / "strip.png", optimize=True)


if __name__ == "__main__":
    main()
