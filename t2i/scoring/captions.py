"""Scores captions of a JSONL file or of a reader against references: BLEU-4 and CIDEr-D.

For a reader on rendered shapes, also computes the share of captions that are correct for their image, as the oracle reads it.
For a reader that answers questions, also computes the share of correct answers, for each kind of question.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i.data import View, open_dataset
from t2i.data.questions import Question
from t2i.data.shapes.captions import parse
from t2i.errors import InputError, os_errors
from t2i.files import read_regular, text_lines
from t2i.hardware import device
from t2i.metrics.captions import bleu, cider_d
from t2i.metrics.intervals import mean_estimate, wilson
from t2i.metrics.score import Score, ScoreProtocol
from t2i.names import counted
from t2i.reader.reading import Reader
from t2i.reader.scores import ask, caption_faithfulness, has_questions, known_questions
from t2i.scoring.images.collection import DEFAULT_N, choose
from t2i.scoring.options import CaptionsOptions, refuse_ignored

VERSION = 1
LINE = '{"candidate": "a red circle", "references": ["a red disc", "..."]}'


def read_pairs(path: Path) -> tuple[list[str], list[list[str]]]:
    """Reads the candidates and the references of each.

    Raises:
        InputError: the file does not exist, or a line has another form than `LINE`.
    """
    with os_errors(f"cannot read {path}", f"name a JSONL file of lines like {LINE}"):
        lines = list(text_lines(path))
    candidates, references = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            candidate, several = entry["candidate"], entry["references"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"line {number} of {path} is not like {LINE}") from error
        if (
            not isinstance(several, list)
            or not several
            or not all(isinstance(one, str) for one in [candidate, *several])
        ):
            raise InputError(f"line {number} of {path} is not like {LINE}")
        candidates.append(candidate)
        references.append(several)
    if len(candidates) < 2:
        raise InputError(
            f"{path} has {counted(len(candidates), 'caption')}; CIDEr-D weighs words by their frequency and needs at least 2"
        )
    return candidates, references


def score_captions(options: CaptionsOptions) -> list[Score]:
    """Scores the captions of a file, or of a reader's run.

    Raises:
        InputError: see `read_pairs` and `score_reader`.
    """
    path = options.file
    if path.is_dir():
        return score_reader(options)
    reader_options = {"--data": options.data, "--split": options.split, "-n": options.n}
    reader_options["--beams"] = options.beams if options.beams > 1 else None
    refuse_ignored(reader_options, f"for captions in {path}")
    candidates, references = read_pairs(path)

    digest = hashlib.sha256(read_regular(path)).hexdigest()
    base = ScoreProtocol(data=f"file:{path.name}", data_digest=digest, metric_version=VERSION)
    return _reference_scores(candidates, references, base)


def _reference_scores(candidates: list[str], references: list[list[str]], base: ScoreProtocol) -> list[Score]:
    """Returns BLEU-4 and CIDEr-D."""
    each = f"{sum(map(len, references)) / len(references):.3g} references each"
    protocol = replace(base, n_fake=len(candidates), captions=each)
    estimate = cider_d(candidates, references)
    return [
        Score(bleu(candidates, references), replace(protocol, metric="bleu-4")),
        Score(estimate.value, replace(protocol, metric="cider-d"), **estimate.described_interval("normal")),
    ]


def score_reader(options: CaptionsOptions) -> list[Score]:
    """Scores the captions and answers of a reader on held-out images.

    Raises:
        InputError: there is no such run, data or split, or the reader only answers and the data has no questions.
    """
    reader = Reader.from_pretrained(options.file, device())
    view, split = View(reader.resolution, reader.data.fit, None, reader.data.split_seed), options.split or "val"
    address = options.data or reader.data.address
    dataset = open_dataset(address, split, view)
    if options.n is not None and options.n > len(dataset):  # rendered data can be of any size
        dataset = open_dataset(address, split, replace(view, limit=options.n))
    rows = choose(len(dataset), options.n or min(DEFAULT_N, len(dataset)), f"split {split} of {dataset.address}")
    images, references = dataset.images(rows), [list(dataset.captions[row]) for row in rows]
    base = ScoreProtocol(
        metric_version=VERSION,
        n_fake=len(rows),
        data=dataset.address,
        data_digest=dataset.fingerprint(),
        split=dataset.split,
        resolution=reader.resolution,
        run=str(options.file),
        checkpoint=reader.digest(),
        sampling=f"{options.beams} beams" if options.beams > 1 else "greedy",
    )
    scores: list[Score] = []
    parts = list(reader.cells(images))
    if reader.writes:
        captions = [text for text, _ in reader.write_of(parts, options.beams)]
        scores += _reference_scores(captions, references, base)
        if all(parse(several[0]) for several in references):
            judged = caption_faithfulness(images, captions)
            scores += [_rate(f"caption-{aspect}", flags, base) for aspect, flags in judged.items()]
    if reader.answers and (has_questions(reader, dataset) or not scores):
        questions = known_questions(reader, dataset)
        scores += _answers(reader, torch.cat(parts), [questions[row] for row in rows], base)
    return scores


def _answers(
    reader: Reader, cells_BLD: Tensor, questions: Sequence[Sequence[Question]], base: ScoreProtocol
) -> list[Score]:
    """Returns the mean credit for each kind of question; the floor is the credit with shuffled images."""
    own, others = ask(reader, cells_BLD, questions), ask(reader, cells_BLD.roll(1, dims=0), questions)
    scores = []
    for kind, of_kind in own.by_kind():
        estimate = mean_estimate(own.credit[of_kind], own.image[of_kind])
        protocol = replace(base, metric=f"answers-{kind}" if kind else "answers", n_fake=int(of_kind.sum()))
        bounds = {"shuffled": float(others.credit[of_kind].mean())}
        interval = estimate.described_interval("normal, clustered by image")
        scores.append(Score(estimate.value, protocol, **interval, bounds=bounds))
    return scores


def _rate(metric: str, flags: NDArray[np.bool_], base: ScoreProtocol) -> Score:
    right = int(flags.sum())
    interval = wilson(right, len(flags))
    return Score(right / len(flags), replace(base, metric=metric), interval, "wilson")
