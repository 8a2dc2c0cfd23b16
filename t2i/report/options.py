"""Options of `t2i eval report`. Imports no torch."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from t2i.config.options import SEEDS, Options, argument, option, split_commas


class ReportOptions(Options):
    """Show runs side by side on one HTML page: images with prompts, scores, curves, configs.

    Attributes:
        data: address of the captioned images; None: the training data of the first run.
        split: None: `val` and `heldout`, or `test` if there is neither.
        n: images that each run samples; the best and worst are selected from them, unless a score file has more.
        neighbours: number of training images to search for the nearest ones, a random choice; 0: none.
        scorer: address of the image-text encoder that scores images; None: the embedded one.
    """

    runs: tuple[str, ...] = argument("Runs of any family; each has a column.", metavar="RUN")
    data: str | None = option(None, "Captioned images; default: training data of the first run.", metavar="ADDRESS")
    split: Annotated[tuple[str, ...] | None, BeforeValidator(split_commas)] = option(
        None, "Splits of the data; default: val, and heldout if there is one.", metavar="A,B", commas=True
    )
    n: int = option(64, "Images that each run samples; 12 are shown with prompts.", metavar="N", short="-n", ge=2)
    neighbours: int = option(20_000, "Training images searched for the nearest ones; 0: none.", metavar="N", ge=0)
    scorer: str | None = option(
        None, "An align run or clip:DIR that scores images, instead of the embedded scorer.", metavar="DIR"
    )
    seed: int = option(0, "Seed of the noise, the same for all runs.", ge=0, lt=SEEDS)
    title: str | None = option(None, "Title of the page; default: the names of the runs.")
    out: Path | None = option(
        None, "Path of the page; default: report.html, inside the run if there is one run.", metavar="FILE"
    )

    @property
    def usual(self) -> bool:
        """Returns True if scorer, data and splits are the defaults, as in the score files of a run."""
        return self.scorer is None and self.data is None and self.split is None

    def heading(self) -> str:
        """Returns the title; by default the names of the runs."""
        return self.title or ", ".join(os.path.basename(os.path.realpath(run)) for run in self.runs)
