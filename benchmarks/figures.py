"""Regenerates the images of README.md and docs/ that show what the shipped models sample.

    python benchmarks/figures.py

`docs/strip.png`: a row of samples by each shipped model (prior, one-pass generator, GAN), for the first held-out captions of
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
MODELS = ("prior", "cvae", "cgan")
COLUMNS = 6
ENLARGED = 2
GAP = 6  # between cells of a grid


def main() -> None:
    captions = open_dataset("shapes-3", "heldout", View(64, limit=COLUMNS)).captions
    prompts = [options[0] for options in captions]
    rows: list[Image.Image] = []
    for name in MODELS:
        images = TextToImagePipeline.from_pretrained(shipped()[name])(prompts, seed=0).images
        cells = [np.asarray(image.resize((64 * ENLARGED,) * 2, Image.Resampling.BICUBIC)) for image in images]
        rows.append(grid(cells, prompts if name == MODELS[-1] else None, columns=COLUMNS))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height - GAP for row in rows) + GAP))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height - GAP for above in rows[:i])))
    sheet.save(DOCS / "strip.png", optimize=True)


if __name__ == "__main__":
    main()
