"""Scores written captions against references: a JSONL file of `candidate` and `references` to BLEU-4 and CIDEr-D."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from t2i.errors import InputError
from t2i.files import read_regular, text_lines
from t2i.metrics.captions import bleu, cider_d
from t2i.metrics.score import Score, ScoreProtocol
from t2i.names import counted

VERSION = 1
LINE = '{"candidate": "a red circle", "references": ["a red disc", "..."]}'


def read_pairs(path: Path) -> tuple[list[str], list[list[str]]]:
    """Candidates, and the references of each.

    Raises:
        InputError: no such file, or a line that is not like `LINE`.
    """
    try:
        lines = list(text_lines(path))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; name a JSONL file of lines as {LINE}"
        ) from error
    candidates, references = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            candidate, several = entry["candidate"], entry["references"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"line {number} of {path} is not as {LINE}") from error
        if (
            not isinstance(several, list)
            or not several
            or not all(isinstance(one, str) for one in [candidate, *several])
        ):
            raise InputError(f"line {number} of {path} is not as {LINE}")
        candidates.append(candidate)
        references.append(several)
    if len(candidates) < 2:
        raise InputError(
            f"{path} has {counted(len(candidates), 'caption')}; CIDEr-D weighs words by how rare they are: give at least 2"
        )
    return candidates, references


def score_captions(path: Path) -> list[Score]:
    """BLEU-4 and CIDEr-D of a file of pairs.

    Raises:
        InputError: see `read_pairs`.
    """
    candidates, references = read_pairs(path)

    protocol = ScoreProtocol(
        metric_version=VERSION,
        n_fake=len(candidates),
        data=f"file:{path.name}",
        data_digest=hashlib.sha256(read_regular(path)).hexdigest(),
        captions=f"{sum(map(len, references)) / len(references):.3g} references each",
    )
    found = cider_d(candidates, references)
    return [
        Score(bleu(candidates, references), replace(protocol, metric="bleu-4")),
        Score(found.value, replace(protocol, metric="cider-d"), **found.described_interval("normal")),
    ]
