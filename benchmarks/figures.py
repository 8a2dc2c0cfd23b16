"""Regenerates the images of README.md and docs/ that show what the shipped models sample.

    python benchmarks/figures.py

`docs/strip.png`: a row of samples by the shipped emoji model, then one by each model of shapes (prior, one-pass
generator, GAN) for the first held-out captions of shapes-3; seed 0, the first sample of each.
`docs/report.png`: the upper part of `t2i eval report cgan prior -n 24 --neighbours 0` in a browser window, if Chromium or
Chrome is installed. Both take about 35 CPU seconds.
"""

import shutil
import subprocess
import sys
import tempfile
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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOW = (1280, 1592)  # pixels of the report that are shown


def main() -> None:
    captions = open_dataset("shapes-3", "heldout", View(64, limit=COLUMNS)).captions
    prompts = [options[0] for options in captions]
    rows = [row_of("emoji", EMOJI, said=True), *(row_of(name, prompts, said=name == MODELS[-1]) for name in MODELS)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height - GAP for row in rows) + GAP))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height - GAP for above in rows[:i])))
    sheet.save(DOCS / "strip.png", optimize=True)
    show_report(("cgan", "prior"))


def show_report(models: tuple[str, ...]) -> None:
    """Writes the report of shipped models and takes an image of it in a browser."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"docs/report.png stays as it is: none of {', '.join(BROWSERS)} is installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "report.html", Path(folder) / "report.png"
        command = [sys.executable, "-m", "t2i.cli", "eval", "report", *models, "-n", "24", "--neighbours", "0"]
        subprocess.run([*command, "--out", page], check=True)
        size = f"{WINDOW[0]},{WINDOW[1] + 200}"  # the last part of a window may not be painted
        how = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
        command = [browser, *how, f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(shot) as image:
            image.convert("RGB").crop((0, 0, *WINDOW)).save(DOCS / "report.png", optimize=True)


def row_of(model: str, prompts: Sequence[str], said: bool) -> Image.Image:
    """Returns the first sample of each prompt in a row, with the prompts below if `said` is True."""
    images = TextToImagePipeline.from_pretrained(shipped()[model])(prompts, seed=0).images
    cells = [np.asarray(image.resize((64 * ENLARGED,) * 2, Image.Resampling.BICUBIC)) for image in images]
    return grid(cells, prompts if said else None, columns=COLUMNS)


if __name__ == "__main__":
    main()
