"""Questions about captions as published: TIFA (Hu et al., ICCV 2023, .json) and DSG (Cho et al., ICLR 2024, .csv)."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.data.captions import clean_caption
from t2i.data.questions import Question, normal_answer
from t2i.errors import InputError
from t2i.files import read_json, read_utf8

_TIFA = "caption, question, answer and choices"
_DSG = ("text", "proposition_id", "dependency", "question_natural_language")


def read_questions(path: Path) -> Mapping[str, Sequence[Question]]:
    """Caption -> its questions.

    Raises:
        InputError: no such file, not one of the two layouts, or a question without an answer; the message names the place.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise InputError(f"questions {path}: name a TIFA file (.json) or a DSG file (.csv)")
    found = _tifa(path) if suffix == ".json" else _dsg(path)
    if not found:
        raise InputError(f"questions {path} holds no questions; name another file")
    return found


def _tifa(path: Path) -> dict[str, list[Question]]:
    entries: Any = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"questions {path} is no list of entries with {_TIFA}; is it the published file?")
    found: dict[str, list[Question]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            caption, text, answer = (_text(entry, key) for key in ("caption", "question", "answer"))
            choices = tuple(str(choice) for choice in entry.get("choices") or ())
        except (KeyError, TypeError, AttributeError) as error:
            why = f"no {error.args[0]}" if isinstance(error, KeyError) else "it is no object"
            raise InputError(
                f"questions {path}: entry {number} has not all of {_TIFA} ({why}); give each an answer"
            ) from error
        question = Question(text, {normal_answer(answer): 1.0}, str(entry.get("element_type", "")), (), choices)
        found.setdefault(clean_caption(caption), []).append(question)
    return found


def _text(entry: Any, key: str) -> str:
    if not isinstance(entry[key], str) or not entry[key].strip():
        raise KeyError(key)
    return entry[key]


def _dsg(path: Path) -> dict[str, list[Question]]:
    """Every answer is yes; a question depends on others of its caption by their numbers, 0: on none."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_utf8(path))))
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; name a DSG file") from error
    if lacking := [column for column in _DSG if not rows or column not in rows[0]]:
        raise InputError(f"questions {path} has no column {lacking[0]!r}; is it the published file?")
    by_caption: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_caption.setdefault(clean_caption(row["text"]), []).append(row)
    found: dict[str, list[Question]] = {}
    for caption, own in by_caption.items():
        place = {row["proposition_id"].strip(): k for k, row in enumerate(own)}
        found[caption] = []
        for row in own:
            needed = [word.strip() for word in row["dependency"].split(",")]
            unknown = [word for word in needed if word not in (*place, "0", "")]
            if unknown or not row["question_natural_language"].strip():
                what = f"depends on question {unknown[0]}, which is not there" if unknown else "is empty"
                raise InputError(
                    f"questions {path}: question {row['proposition_id']} about {caption[:60]!r} {what}; mend it"
                )
            parents = tuple(place[word] for word in needed if word in place)
            kind = (row.get("category_broad") or "").strip()
            found[caption].append(
                Question(row["question_natural_language"].strip(), {"yes": 1.0}, kind, parents, ("yes", "no"))
            )
    return found
