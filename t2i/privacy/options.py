"""The options of `t2i eval privacy`. Imports no torch."""

from pathlib import Path

from t2i.config.options import SEEDS, Options, argument, option


class PrivacyOptions(Options):
    """Guess which images a model was trained on, and tell how often the guess is right."""

    run: str = argument("A run that makes images, a saved pipeline, or a model that ships with t2i.", metavar="RUN")
    n: int = option(
        500, "Training images, and as many of val; fewer where there are fewer.", metavar="N", short="-n", ge=10
    )
    seed: int = option(0, "Seed of the sampled images and of the bootstrap.", ge=0, lt=SEEDS)
    html: Path | None = option(
        None, "Also write a page of the sampled images that are nearest to training images.", metavar="PAGE"
    )
    out: Path | None = option(None, "JSON file of the scores; default: only print the table.", metavar="FILE")
