"""Reads questions about captions from files of TIFA (Hu et al., ICCV 2023, .json) and DSG (Cho et al., ICLR 2024, .csv)."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.data.captions import clean_caption
from t2i.data.questions import Question, normal_answer
from t2i.data.shapes.captions import parse
from t2i.data.shapes.questions import questions_about
from t2i.errors import InputError
from t2i.files import read_json, read_utf8
from t2i.seeding import key_of

_TIFA = "caption, question, answer and choices"
_DSG = ("text", "proposition_id", "dependency", "question_natural_language")


def read_questions(path: Path) -> Mapping[str, Sequence[Question]]:
    """Returns the questions of each caption.

    Raises:
        InputError: the file does not exist, has neither layout, or has a question without an answer.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise InputError(f"questions {path}: name a TIFA file (.json) or a DSG file (.csv)")
    questions = _tifa(path) if suffix == ".json" else _dsg(path)
    if not questions:
        raise InputError(f"questions {path} holds no questions; name another file")
    return questions


def _tifa(path: Path) -> dict[str, list[Question]]:
    entries: Any = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"questions {path} is not a list of entries with {_TIFA}; is it the published file?")
    questions: dict[str, list[Question]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            caption, text, answer = (_text(entry, key) for key in ("caption", "question", "answer"))
            choices = tuple(str(choice) for choice in entry.get("choices") or ())
        except (KeyError, TypeError, AttributeError) as error:
            why = f"no {error.args[0]}" if isinstance(error, KeyError) else "it is not an object"
            raise InputError(f"questions {path}: entry {number} needs {_TIFA} ({why}); complete it") from error
        question = Question(text, {normal_answer(answer): 1.0}, str(entry.get("element_type", "")), (), choices)
        questions.setdefault(clean_caption(caption), []).append(question)
    return questions


def _text(entry: Any, key: str) -> str:
    if not isinstance(entry[key], str) or not entry[key].strip():
        raise KeyError(key)
    return entry[key]


def _dsg(path: Path) -> dict[str, list[Question]]:
    """Reads DSG: all answers are yes; a question lists the numbers of the questions that it depends on, 0 for none."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_utf8(path))))
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; name a DSG file") from error
    if lacking := [column for column in _DSG if not rows or column not in rows[0]]:
        raise InputError(f"questions {path} has no column {lacking[0]!r}; is it the published file?")
    by_caption: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_caption.setdefault(clean_caption(row["text"]), []).append(row)
    questions: dict[str, list[Question]] = {}
    for caption, entries in by_caption.items():
        position = {row["proposition_id"].strip(): k for k, row in enumerate(entries)}
        questions[caption] = []
        for row in entries:
            needed = [word.strip() for word in row["dependency"].split(",")]
            unknown = [word for word in needed if word not in (*position, "0", "")]
            if unknown or not row["question_natural_language"].strip():
                what = f"depends on question {unknown[0]}, which does not exist" if unknown else "is empty"
                raise InputError(
                    f"questions {path}: question {row['proposition_id']} about {caption[:60]!r} {what}; correct it"
                )
            parents = tuple(position[word] for word in needed if word in position)
            kind = (row.get("category_broad") or "").strip()
            questions[caption].append(
                Question(row["question_natural_language"].strip(), {"yes": 1.0}, kind, parents, ("yes", "no"))
            )
    return questions


def questions_about_captions(captions: Sequence[str], file: Path | None) -> list[list[Question]]:
    """Returns the questions about each caption, which are the same for equal captions.

    Args:
        file: a TIFA or DSG file; None: questions are generated from captions of rendered shapes.

    Raises:
        InputError: there are no questions about a caption.
    """
    if file is not None:
        known = read_questions(file)
        if missing := [caption for caption in captions if clean_caption(caption) not in known]:
            raise InputError(
                f"{file} has no questions about {len(missing):,} of {len(captions):,} captions, e.g. {missing[0][:60]!r}; omit "
                "--data and --prompts to sample the captions in the file"
            )
        return [list(known[clean_caption(caption)]) for caption in captions]
    specs = [parse(caption) for caption in captions]
    if None in specs:
        odd = captions[specs.index(None)]
        raise InputError(
            f"questions can be generated from captions of rendered shapes only, not from {odd[:60]!r}; name a TIFA or DSG file "
            "with --questions"
        )
    return [
        questions_about(spec, key_of(caption))
        for spec, caption in zip(specs, captions, strict=True)
        if spec is not None
    ]
