"""The options of `t2i explain`. Imports no torch."""

from pathlib import Path

from t2i.config.options import Options, argument, option


class ExplainOptions(Options):
    """Show which word made which part of an image, on one HTML page."""

    run: str = argument("A run that makes images, a saved pipeline, or a model that ships with t2i.", metavar="RUN")
    prompt: str = argument("The prompt, in quotes.", metavar="PROMPT")
    seed: int = option(0, "Seed of the noise, as of t2i sample.", ge=0)
    replacements: int = option(
        7, "Most words that take the place of each word; its map is their mean.", metavar="N", ge=1
    )
    scorer: str | None = option(
        None,
        "Whose score the words share out: an align run or clip:DIR, instead of the embedded scorer.",
        metavar="DIR",
    )
    out: Path | None = option(None, "The page, a new file; default: explain-PROMPT.html here.", metavar="FILE")
