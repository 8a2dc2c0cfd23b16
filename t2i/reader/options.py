"""The options of `t2i read`. Imports no torch."""

from pathlib import Path

from t2i.config.options import Options, argument, option


class ReadOptions(Options):
    """Write a caption for each image, or answer questions about it."""

    run: Path = argument("A run of t2i train reader, or of t2i train align, which has a captioner.", metavar="RUN")
    images: tuple[Path, ...] = argument("Images, or folders of images.", metavar="IMAGES...")
    ask: tuple[str, ...] = option(
        (), "A question to answer instead of a caption; may be repeated.", metavar="QUESTION", flag="--ask"
    )
    beams: int = option(1, "Number of beams for a caption; 1: greedy decoding.", metavar="N", ge=1, le=64)
    out: Path | None = option(None, "Also write a JSONL file with one line per image.", metavar="FILE")
