"""VQAv2 (Goyal et al., CVPR 2017): `vqa2:/path`, with the question and annotation files and the COCO 2014 images as published.

The captions of an image are its questions, each with its most frequent answer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, bad_layout, first_of, open_listed, require_folder
from t2i.data.questions import Question, vqa_credit
from t2i.errors import InputError
from t2i.files import read_json

_NAME = re.compile(r"v2_OpenEnded_mscoco_((?:train|val)2014)_questions\.json")
_ROLES = {"train": ("train2014",), "val": ("val2014",)}


def open_vqa2(place: str, split: str, view: View) -> FolderDataset:
    """Opens one split: `train` is train2014, `val` is val2014; `test` is published without answers.

    Raises:
        InputError: no files of VQAv2 there, questions without answers, no such split, or no images.
    """
    root = require_folder(place, "vqa2")
    files = {match[1]: path for path in _json_files(root) if (match := _NAME.fullmatch(path.name))}
    if not files:
        first_of(root, ("v2_OpenEnded_mscoco_train2014_questions.json",), "vqa2", "questions")
    questions: dict[str, list[Question]] = {}
    parts: dict[str, str] = {}
    for part, path in files.items():
        own = _read(root, part, path)
        questions |= own
        parts |= dict.fromkeys(own, part)
    captions = {name: [_with_answer(question) for question in own] for name, own in questions.items()}
    dataset = open_listed(
        Listing("vqa2", root, ", ".join(map(str, files.values())), captions, parts, _ROLES), split, view
    )
    dataset.questions = [questions[name] for name in dataset.ids]
    return dataset


def _with_answer(question: Question) -> str:
    """Returns the question and its most frequent answer as one text."""
    return f"{question.text} {max(question.answers, key=question.answers.__getitem__)}"


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("v2_*.json"), *root.glob("*/v2_*.json")])


def _read(root: Path, part: str, path: Path) -> dict[str, list[Question]]:
    """Returns path of an image -> its questions."""
    answers_name = f"v2_mscoco_{part}_annotations.json"
    found = next((other for other in _json_files(root) if other.name == answers_name), None)
    if found is None:
        raise InputError(f"vqa2:{root}: {path.name} has no answers beside it; put {answers_name} there")
    folder = f"images/{part}" if not (root / part).is_dir() and (root / "images" / part).is_dir() else part
    answers = _answers(found)
    content, by_image = read_json(path), dict[str, list[Question]]()
    try:
        for row in content["questions"]:
            credit, kind = answers[row["question_id"]]
            name = f"{folder}/COCO_{part}_{int(row['image_id']):012d}.jpg"
            by_image.setdefault(name, []).append(Question(row["question"].lower(), credit, kind))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, KeyError) and isinstance(row := error.args[0], int):
            raise InputError(
                f"{path}: question {row} has no answers in {found.name}; download both of one release"
            ) from error
        raise bad_layout(path, error, "questions with question_id, image_id and question") from error
    return by_image


def _answers(path: Path) -> Mapping[int, tuple[dict[str, float], str]]:
    """Returns number of a question -> the credit of its answers, and the kind of answer."""
    content: Any = read_json(path)
    try:
        answers = {
            row["question_id"]: (vqa_credit(one["answer"] for one in row["answers"]), str(row.get("answer_type", "")))
            for row in content["annotations"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_layout(path, error, "annotations with question_id and answers") from error
    unanswered = next((number for number, (credit, _) in answers.items() if not credit), None)
    if unanswered is not None:
        raise InputError(
            f"{path}: question {unanswered} has an empty list of answers; download the published file again"
        )
    return answers
