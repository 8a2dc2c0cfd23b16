"""Scores with their protocols, and score files. A protocol has everything that decided a score.

The name of a score has the metric, the extractor and N: `fid-shapes@1000`, `clip-aligned@1000`. Names in `BARE`, such as
`fid@30000`, are reserved for the FID Inception of 2015-12-05, which is recognised by the digest of its weights.
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
from t2i.names import number

SCHEMA = 1
# sha256 of the PyTorch port of http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz, the
# same file as published by pytorch-fid (pt_inception-2015-12-05-6726825d.pth) and torch-fidelity
# (weights-inception-2015-12-05-6726825d.pth).
FID_INCEPTION_DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BARE = ("fid", "fid-infinity", "kid", "inception-score", "rfid")
_LIBRARIES = ("t2i", "torch", "torchvision", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect scores, without importing them."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class ScoreProtocol:
    """Everything that decides a score. None: not applicable."""

    metric: str = ""  # `fid`, `kid`, `clip`, `faithfulness-strict`, ...
    metric_version: int = 0
    extractor: str | None = None  # None: the metric reads no features
    extractor_digest: str | None = None  # sha256 of weights and preprocessing
    n_real: int | None = None
    n_fake: int = 0
    data: str = ""  # address of the captioned images, e.g. `shapes-2`
    data_digest: str = ""  # fingerprint of their ids, captions and transform
    split: str | None = None
    captions: str | None = None  # choice of captions, and images per caption: `first, 1 picture each`
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
    checkpoint: str | None = None  # digest of the checkpoint, or of the images of a folder
    sizes: str | None = None  # sizes of the images, if they differ and the extractor resizes them
    formats: str | None = None  # file formats of both sides, if they differ
    skipped: str | None = None  # number of broken images that were left out
    forced: str | None = None  # the rule that was broken
    weights: str | None = None  # validation score and step by which the weights were selected; None: the last ones
    named: str | None = None  # name of the protocol in `t2i.scoring.protocols`


# Fields of the scored model. Scores of two models that differ only in these are comparable.
_SUBJECT = ("run", "checkpoint", "weights", "named")


@dataclass(frozen=True)
class Score:
    """A value with its protocol, interval and bounds.

    Attributes:
        interval: 95 % confidence interval.
        interval_method: e.g. `wilson`, `normal, clustered by prompt`.
        bounds: values to compare with: `real`, `shuffled`, ...
        samples: [N] scores of single images, whose mean is the value; NaN for images that do not count. Stored in another
            file.
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
        """Returns the entry of a score file."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}
        return {"name": self.name, **values, "protocol": asdict(self.protocol)}


def score_name(protocol: ScoreProtocol) -> str:
    """Returns `metric-extractor@N`, without the extractor if there is none, and for names in `BARE` by the FID Inception."""
    known = protocol.extractor_digest == FID_INCEPTION_DIGEST
    if protocol.extractor is None and protocol.metric in BARE:
        raise ValueError(f"{protocol.metric} without an extractor")
    if protocol.extractor is None or (known and protocol.metric in BARE):
        return f"{protocol.metric}@{protocol.n_fake}"
    if protocol.metric.startswith("fid") and protocol.extractor.startswith("dinov2"):  # its published name
        return f"{protocol.metric.replace('fid', 'fd', 1)}-{protocol.extractor}@{protocol.n_fake}"
    # The extractor of a CLIP folder is named clip-...; its CLIP score is clip-..., its FID fid-clip-...
    words = protocol.extractor.removeprefix(f"{protocol.metric}-")
    return f"{protocol.metric}-{words}@{protocol.n_fake}"


def differences(a: Score, b: Score) -> list[str]:
    """Returns a line for each field in which the protocols differ; scores without differences are comparable."""
    first, second = _flat(a.protocol), _flat(b.protocol)
    keys = [key for key in {**first, **second} if key not in _SUBJECT]
    return [f"{key}: {first.get(key)} / {second.get(key)}" for key in keys if first.get(key) != second.get(key)]


def _flat(protocol: ScoreProtocol) -> dict[str, object]:
    values = asdict(protocol)
    libraries = values.pop("libraries")
    return values | {f"libraries.{name}": version for name, version in libraries.items()}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Writes a score file atomically.

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
        InputError: the file does not exist, is no score file, or a name in it contradicts the protocol.
    """
    try:
        document = json.loads(read_regular(path))
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: score file of schema {document['schema']}, expected {SCHEMA}; score again")
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
        raise InputError(
            f"{path}: the score {entry['name']!r} should be named {score.name!r} by its protocol; score again"
        )
    return score


def rounded(value: float) -> str:
    """Formats a value for tables: three decimals for shares, three significant digits for others."""
    return f"{value:.3f}" if 0.001 <= abs(value) <= 1 or value == 0 else number(value)


def score_row(score: Score, bounds: Sequence[str]) -> list[str]:
    """Returns the cells of a table: name, value, 95 % interval, and the named bounds, empty for those it does not have."""
    interval = "" if score.interval is None else "..".join(map(rounded, score.interval))
    others = (rounded(score.bounds[bound]) if bound in score.bounds else "" for bound in bounds)
    return [score.name, rounded(score.value), interval, *others]
