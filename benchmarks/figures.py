"""Regenerates the images of README.md and docs/ that show what the shipped models sample.

    python benchmarks/figures.py

`docs/strip.png`: a row of samples by the shipped emoji model, then one by each model of shapes (prior, one-pass
generator, GAN) for the first held-out captions of shapes-3; seed 0, the first sample of each. Takes about 25 CPU seconds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from t2i.data import View, open_dataset
from t2i.images import grid
from t2i.pipeline import TextToImagePipeline
from t2i.weights import shipped

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODELS = ("prior", "cvae", "cgan")
EMOJI = ("a slice of pizza", "a dog", "a red apple", "a rocket", "a penguin", "a house")
COLUMNS = 6
ENLARGED = 2
GAP = 6  # between cells of a grid


def main() -> None:
    captions = open_dataset("shapes-3", "heldout", View(64, limit=COLUMNS)).captions
    prompts = [options[0] for options in captions]
    rows = [row_of("emoji", EMOJI, said=True), *(row_of(name, prompts, said=name == MODELS[-1]) for name in MODELS)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height - GAP for row in rows) + GAP))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height - GAP for above in rows[:i])))
    sheet.save(DOCS / "strip.png", optimize=True)


def row_of(model: str, prompts: Sequence[str], said: bool) -> Image.Image:
    """Returns the first sample of each prompt in a row, with the prompts below where they are `said`."""
    images = TextToImagePipeline.from_pretrained(shipped()[model])(prompts, seed=0).images
    cells = [np.asarray(image.resize((64 * ENLARGED,) * 2, Image.Resampling.BICUBIC)) for image in images]
    return grid(cells, prompts if said else None, columns=COLUMNS)


if __name__ == "__main__":
    main()
