"""The options of a scoring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.extractors import Resize


@dataclass(frozen=True)
class Options:
    """What is scored and how.

    Attributes:
        metrics: names as in a score's, without N (`fid-shapes`); `faithfulness` for all its aspects, `precision` for
            that of every extractor, `all`; None: the usual ones that apply.
        seed: decides noise, shuffles and the bootstrap, but not which pictures are scored.
        truncation, guidance: of the generator; None: its own.
        settings: further ones of the generator's family, e.g. temperature.
        best_of: candidates drawn for each picture; an encoder keeps the best, and is not asked for scores then.
        reranker: its address, as `t2i.extractors.open_image_text` takes it; None: the embedded one.
        inception, clip, dinov2: a weights file and folders (or hub ids), for extractors beside the scorer.
        scorer: another dual encoder than the one that ships with the package.
        force: score where the rules forbid it: with an encoder that took part in the training, with too few pictures.
        resize: how pictures reach the size of the Inception and of DINOv2.
        allow_leak: score a run on what it was trained on, and say so in the protocol.
        skip_broken: leave out pictures that cannot be decoded, and count them in the protocol.
        resolution: pixels a side of the real pictures of a data set; None: as many as the generated ones have.
        save_features: a file that keeps features between scorings.
        named: the protocol of `t2i.scoring.protocols` that all this is of.
    """

    metrics: Sequence[str] | None = None
    seed: int = 0
    truncation: float | None = None
    guidance: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    best_of: int = 1
    reranker: str | None = None
    inception: Path | None = None
    clip: Path | None = None
    scorer: Path | None = None
    force: bool = False
    dinov2: Path | None = None
    resize: Resize = "clean"
    allow_leak: bool = False
    skip_broken: bool = False
    resolution: int | None = None
    save_features: Path | None = None
    named: str | None = None
