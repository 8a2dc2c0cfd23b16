"""Options of `t2i eval privacy`. Imports no torch."""

from pathlib import Path

from t2i.config.options import SEEDS, Options, argument, option


class PrivacyOptions(Options):
    """Guess which images a model was trained on, and score the guesses."""

    run: str = argument("A run that makes images, a saved pipeline, or a model that ships with t2i.", metavar="RUN")
    n: int = option(
        500,
        "Number of training images, and of images of val; fewer if there are fewer.",
        metavar="N",
        short="-n",
        ge=10,
    )
    seed: int = option(0, "Seed of the sampled images and of the bootstrap.", ge=0, lt=SEEDS)
    html: Path | None = option(
        None, "Also write an HTML page with the sampled images that are nearest to training images.", metavar="PAGE"
    )
    out: Path | None = option(None, "JSON file for the scores; default: only print the table.", metavar="FILE")
