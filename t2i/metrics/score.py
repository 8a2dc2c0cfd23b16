"""A score is a number and its protocol: everything that decided it, in the name and in the file.

The name `fid` (and what else is in `BARE`) belongs to the FID Inception of 2015-12-05 alone, told by the digest of its
weights; every other extractor stands in the name, and so does N: `fid@30000`, `fid-shapes@1000`, `clip-aligned@1000`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from t2i.errors import InputError
from t2i.files import write_text

SCHEMA = 1
# sha256 of the PyTorch port of http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz, the
# same file as published by pytorch-fid (pt_inception-2015-12-05-6726825d.pth) and torch-fidelity
# (weights-inception-2015-12-05-6726825d.pth).
FID_INCEPTION_DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BARE = ("fid", "fid-infinity", "kid", "inception-score", "rfid")
_LIBRARIES = ("t2i", "torch", "torchvision", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of what takes part in a score, without importing any of it."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Protocol:
    """Everything that decides a score. None: does not apply."""

    metric: str  # `fid`, `kid`, `clip`, `faithfulness-strict`, ...
    metric_version: int
    extractor: str | None  # None: the metric sees no features
    extractor_digest: str | None  # sha256 of weights and preprocessing
    n_real: int | None
    n_fake: int
    data: str  # address of the captioned pictures, e.g. `shapes-2`
    data_digest: str  # fingerprint of their ids, captions and transform
    split: str | None
    captions: str | None  # which caption of a picture, and how many pictures a caption: `first, 1 picture each`
    resize: str | None
    resolution: int | None
    seed: int | None
    quantisation: str = "uint8, half up"
    truncation: float | None = None
    guidance: float | None = None
    temperature: float | None = None
    sampling: str | None = None  # JSON of the settings of the generator's family
    reranking: str | None = None
    leak: str | None = None  # what of the data the run was trained on, where it is scored all the same
    libraries: Mapping[str, str] = field(default_factory=library_versions)
    run: str | None = None  # digest of the run's resolved config; None: a folder of pictures
    checkpoint: str | None = None  # its digest; of a folder: that of its pictures
    sizes: str | None = None  # where pictures differ in size, and the extractor resizes them
    skipped: str | None = None  # broken pictures that were left out
    forced: str | None = None  # the rule that was broken
    weights: str | None = None  # by which score of which step they were chosen; None: the last ones
    named: str | None = None  # a protocol of `t2i.scoring.protocols` that all this is of


# What is scored, as opposed to how: two models under one protocol differ here, and compare.
_SUBJECT = ("run", "checkpoint", "weights", "named")


@dataclass(frozen=True)
class Score:
    """A value that can be read without its maker."""

    value: float
    protocol: Protocol
    interval: tuple[float, float] | None = None  # 95 %
    interval_method: str | None = None  # e.g. `wilson`, `normal, clustered by prompt`
    bounds: Mapping[str, float] = field(default_factory=dict)  # what to read it against: `real`, `shuffled`

    @property
    def name(self) -> str:
        return score_name(self.protocol)


def score_name(protocol: Protocol) -> str:
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
    """Why two scores do not compare: one line for each part of the protocol that differs. Empty: they do."""
    first, second = _flat(a.protocol), _flat(b.protocol)
    keys = [key for key in {**first, **second} if key not in _SUBJECT]
    return [f"{key}: {first.get(key)} / {second.get(key)}" for key in keys if first.get(key) != second.get(key)]


def _flat(protocol: Protocol) -> dict[str, object]:
    values = asdict(protocol)
    libraries = values.pop("libraries")
    return values | {f"libraries.{name}": version for name, version in libraries.items()}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Writes a score file, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
        ValueError: a value is not finite.
    """
    entries = [{"name": score.name, **asdict(score)} for score in scores]
    text = json.dumps({"schema": SCHEMA, "scores": entries}, indent=2, allow_nan=False) + "\n"
    write_text(path, text, durable=True)


def read_scores(path: Path) -> list[Score]:
    """Reads a score file.

    Raises:
        InputError: no such file, not a score file, or one whose names and protocols disagree.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: score file of schema {document['schema']}, {SCHEMA} is read here; score again")
        return [_parse(path, entry) for entry in document["scores"]]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a score file") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a score file ({type(error).__name__}: {error}); score again") from error


def _parse(path: Path, entry: dict[str, Any]) -> Score:
    values = {f.name: entry[f.name] for f in fields(Score)}
    interval = values["interval"]
    values |= {"protocol": Protocol(**values["protocol"]), "interval": None if interval is None else tuple(interval)}
    score = Score(**values)
    if score.name != entry["name"]:
        raise InputError(f"{path}: the score named {entry['name']!r} is a {score.name!r} by its protocol; score again")
    return score
