"""The options of `t2i read`. Imports no torch."""

from pathlib import Path

from t2i.config.options import Options, argument, option


class ReadOptions(Options):
    """Write a caption of each image, or answer questions about it."""

    run: Path = argument(
        "A run of t2i train reader, or of t2i train align, whose captioner then writes.", metavar="RUN"
    )
    images: tuple[Path, ...] = argument("Images, or folders of images.", metavar="IMAGES...")
    ask: tuple[str, ...] = option(
        (), "A question to answer instead; may be given several times.", metavar="QUESTION", flag="--ask"
    )
    beams: int = option(
        1, "Beams of the search for a caption; 1: the likeliest token each time.", metavar="N", ge=1, le=64
    )
    out: Path | None = option(None, "Also write a JSONL file: a line for each image.", metavar="FILE")
