"""The options of `t2i eval report`. Imports no torch."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from t2i.config.options import Options, argument, option, split_commas


class ReportOptions(Options):
    """Show runs side by side on one HTML page: images beside prompts, scores, curves, configs.

    Attributes:
        data: address of the captioned images; None: what the first run was trained on.
        split: None: `val`, and `heldout` where there is one; else `test`.
        n: images that each run samples; the best and worst are chosen among them where no score file knows more.
        neighbours: training images among which the nearest are looked for, a random choice where there are more; 0: none.
        scorer: address of the image-text encoder that judges; None: the embedded one.
    """

    runs: tuple[str, ...] = argument("Runs of any family; a column each.", metavar="RUN")
    data: str | None = option(None, "Captioned images; default: what the first run was trained on.", metavar="ADDRESS")
    split: Annotated[tuple[str, ...] | None, BeforeValidator(split_commas)] = option(
        None, "Splits of the data; default: val, and heldout where there is one.", metavar="A,B", commas=True
    )
    n: int = option(64, "Images that each run samples; 12 are shown with prompts.", metavar="N", short="-n", ge=2)
    neighbours: int = option(20_000, "Training images searched for the nearest ones; 0: none.", metavar="N", ge=0)
    scorer: str | None = option(
        None, "What judges images: an align run or clip:DIR, instead of the embedded scorer.", metavar="DIR"
    )
    seed: int = option(0, "Seed of the noise, the same for all runs.", ge=0)
    title: str | None = option(None, "Title of the page; default: the names of the runs.")
    out: Path | None = option(
        None, "The page, a new file; default: report.html, inside the run if there is one run.", metavar="FILE"
    )

    @property
    def usual(self) -> bool:
        """True if nothing is named that a score file of the run would not have."""
        return self.scorer is None and self.data is None and self.split is None

    def heading(self) -> str:
        """The title, or the names of the runs."""
        return self.title or ", ".join(os.path.basename(os.path.realpath(run)) for run in self.runs)
