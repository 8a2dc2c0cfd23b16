"""Options of `t2i explain`. Imports no torch."""

from pathlib import Path

from t2i.config.options import SEEDS, Options, argument, option


class ExplainOptions(Options):
    """Show the part of an image that each word affects, on one HTML page."""

    run: str = argument("A run that makes images, a saved pipeline, or a model that ships with t2i.", metavar="RUN")
    prompt: str = argument("The prompt, in quotes.", metavar="PROMPT")
    seed: int = option(0, "Seed of the noise, as in t2i sample.", ge=0, lt=SEEDS)
    replacements: int = option(7, "Most replacements of each word; its map is their mean.", metavar="N", ge=1)
    scorer: str | None = option(None, "An align run or clip:DIR as scorer, instead of the embedded one.", metavar="DIR")
    out: Path | None = option(None, "Path of the page; default: explain-PROMPT.html.", metavar="FILE")
