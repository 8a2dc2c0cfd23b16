"""Options of `t2i web`. Imports no torch."""

from pathlib import Path

from t2i.config.options import Options, argument, option


class WebOptions(Options):
    """Sample images in the browser, on this machine only."""

    runs: tuple[str, ...] = argument(
        "Runs or saved pipelines. The page also has the models that ship with t2i, and every run below runs/.",
        metavar="[RUN ...]",
        default=(),
    )
    port: int | None = option(None, "Port of 127.0.0.1; default: the first free one from 7860.", ge=1, le=65535)
    keep_gb: float = option(
        4.0, "Limit of loaded weights; the least recently used model is dropped first.", metavar="GB", gt=0
    )
    export: Path | None = option(None, "Write a Hugging Face Space of one RUN to a new folder instead.", metavar="DIR")
