"""A score is a number and its protocol: everything that decided it, in the name and in the file.

The name `fid` (and the others in `BARE`) belongs to the FID Inception of 2015-12-05 alone, recognised by the digest of its
weights; every other extractor is part of the name, and so is N: `fid@30000`, `fid-shapes@1000`, `clip-aligned@1000`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.files import read_regular, write_text

SCHEMA = 1
# sha256 of the PyTorch port of http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz, the
# same file as published by pytorch-fid (pt_inception-2015-12-05-6726825d.pth) and torch-fidelity
# (weights-inception-2015-12-05-6726825d.pth).
FID_INCEPTION_DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BARE = ("fid", "fid-infinity", "kid", "inception-score", "rfid")
_LIBRARIES = ("t2i", "torch", "torchvision", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of the libraries behind a score, without importing any of them."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class ScoreProtocol:
    """Everything that decides a score. None: does not apply."""

    metric: str = ""  # `fid`, `kid`, `clip`, `faithfulness-strict`, ...
    metric_version: int = 0
    extractor: str | None = None  # None: the metric reads no features
    extractor_digest: str | None = None  # sha256 of weights and preprocessing
    n_real: int | None = None
    n_fake: int = 0
    data: str = ""  # address of the captioned images, e.g. `shapes-2`
    data_digest: str = ""  # fingerprint of their ids, captions and transform
    split: str | None = None
    captions: str | None = None  # which caption of an image, and how many images a caption: `first, 1 picture each`
    resize: str | None = None
    resolution: int | None = None
    seed: int | None = None
    quantisation: str = "uint8, half up"
    truncation: float | None = None
    guidance: float | None = None
    temperature: float | None = None
    sampling: str | None = None  # JSON of the settings of the generator's family
    reranking: str | None = None
    leak: str | None = None  # the part of the data that the run was trained on, if that was allowed
    libraries: Mapping[str, str] = field(default_factory=library_versions)
    run: str | None = None  # digest of the run's resolved config; None: a folder of images
    checkpoint: str | None = None  # its digest; of a folder: that of its images
    sizes: str | None = None  # sizes of the images, where they differ and the extractor resizes them
    formats: str | None = None  # file formats of both sides, where they differ
    skipped: str | None = None  # number of broken images that were left out
    forced: str | None = None  # the rule that was broken
    weights: str | None = None  # the score and step by which they were chosen; None: the last ones
    named: str | None = None  # name of the protocol in `t2i.scoring.protocols` that decided all this


# The subject of a score, not its method: two models under one protocol differ here, and compare.
_SUBJECT = ("run", "checkpoint", "weights", "named")


@dataclass(frozen=True)
class Score:
    """A value with all that is needed to read it.

    Attributes:
        interval: of 95 %.
        interval_method: e.g. `wilson`, `normal, clustered by prompt`.
        bounds: values to read it against: `real`, `shuffled`, ...
        samples: [N] one an image, whose mean the value is; NaN: an image that is not counted. Kept in a file of its own.
    """

    value: float
    protocol: ScoreProtocol
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    samples: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return score_name(self.protocol)

    def entry(self) -> dict[str, Any]:
        """As a score file has it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}
        return {"name": self.name, **values, "protocol": asdict(self.protocol)}


def score_name(protocol: ScoreProtocol) -> str:
    """`metric-extractor@N`; the extractor is left out where the metric has none, and for the FID Inception."""
    known = protocol.extractor_digest == FID_INCEPTION_DIGEST
    if protocol.extractor is None and protocol.metric in BARE:
        raise ValueError(f"{protocol.metric} without an extractor")
    if protocol.extractor is None or (known and protocol.metric in BARE):
        return f"{protocol.metric}@{protocol.n_fake}"
    if protocol.metric.startswith("fid") and protocol.extractor.startswith("dinov2"):  # its published name
        return f"{protocol.metric.replace('fid', 'fd', 1)}-{protocol.extractor}@{protocol.n_fake}"
    # A CLIP folder is called clip-...: its CLIP score is clip-..., its FID fid-clip-...
    words = protocol.extractor.removeprefix(f"{protocol.metric}-")
    return f"{protocol.metric}-{words}@{protocol.n_fake}"


def differences(a: Score, b: Score) -> list[str]:
    """The parts of the protocols that differ, a line each; two scores without any compare."""
    first, second = _flat(a.protocol), _flat(b.protocol)
    keys = [key for key in {**first, **second} if key not in _SUBJECT]
    return [f"{key}: {first.get(key)} / {second.get(key)}" for key in keys if first.get(key) != second.get(key)]


def _flat(protocol: ScoreProtocol) -> dict[str, object]:
    values = asdict(protocol)
    libraries = values.pop("libraries")
    return values | {f"libraries.{name}": version for name, version in libraries.items()}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Writes a score file, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
        ValueError: a value is not finite.
    """
    entries = [score.entry() for score in scores]
    text = json.dumps({"schema": SCHEMA, "scores": entries}, indent=2, allow_nan=False) + "\n"
    write_text(path, text, durable=True)


def read_scores(path: Path) -> list[Score]:
    """Reads a score file.

    Raises:
        InputError: no such file, not a score file, or one whose names and protocols disagree.
    """
    try:
        document = json.loads(read_regular(path))
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: score file of schema {document['schema']}, {SCHEMA} is read here; score again")
        return [_parse(path, entry) for entry in document["scores"]]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a score file") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a score file ({type(error).__name__}: {error}); score again") from error


def _parse(path: Path, entry: dict[str, Any]) -> Score:
    values = {f.name: entry[f.name] for f in fields(Score) if f.name != "samples"}
    interval = values["interval"]
    values |= {
        "protocol": ScoreProtocol(**values["protocol"]),
        "interval": None if interval is None else tuple(interval),
    }
    score = Score(**values)
    if score.name != entry["name"]:
        raise InputError(f"{path}: the score named {entry['name']!r} is a {score.name!r} by its protocol; score again")
    return score


def rounded(value: float) -> str:
    """Returns a value as tables show it: three decimals of a share, three digits of anything else."""
    return f"{value:.3f}" if 0.001 <= abs(value) < 1 or value == 0 else f"{value:.3g}"
