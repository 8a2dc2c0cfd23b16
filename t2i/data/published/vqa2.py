"""VQAv2 (Goyal et al., CVPR 2017): `vqa2:/path`, the published files of questions and annotations with the images of COCO 2014.

The captions of an image are its questions, each followed by its most frequent answer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import (
    Listing,
    bad_layout,
    first_of,
    image_folder,
    open_listed,
    require_folder,
)
from t2i.data.questions import Question, vqa_credit
from t2i.errors import InputError
from t2i.files import read_json

_NAME = re.compile(r"v2_OpenEnded_mscoco_((?:train|val)2014)_questions\.json")
_ROLES = {"train": ("train2014",), "val": ("val2014",)}


def open_vqa2(place: str, split: str, view: View) -> FolderDataset:
    """Opens one split: `train` is train2014, `val` is val2014; `test` is published without answers."""
    root = require_folder(place, "vqa2")
    files = {match[1]: path for path in _json_files(root) if (match := _NAME.fullmatch(path.name))}
    if not files:
        first_of(root, ("v2_OpenEnded_mscoco_train2014_questions.json",), "vqa2", "questions")
    questions: dict[str, list[Question]] = {}
    parts: dict[str, str] = {}
    for part, path in files.items():
        questions_of_part = _read(root, part, path)
        questions |= questions_of_part
        parts |= dict.fromkeys(questions_of_part, part)
    captions = {name: [_with_answer(question) for question in several] for name, several in questions.items()}
    listing = Listing("vqa2", root, ", ".join(map(str, files.values())), captions, parts, _ROLES)
    dataset = open_listed(listing, split, view)
    dataset.questions = [questions[name] for name in dataset.ids]
    return dataset


def _with_answer(question: Question) -> str:
    return f"{question.text} {max(question.answers, key=question.answers.__getitem__)}"


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("v2_*.json"), *root.glob("*/v2_*.json")])


def _read(root: Path, part: str, path: Path) -> dict[str, list[Question]]:
    """Returns the questions of each image by its path."""
    answers_name = f"v2_mscoco_{part}_annotations.json"
    answers_file = next((other for other in _json_files(root) if other.name == answers_name), None)
    if answers_file is None:
        raise InputError(f"vqa2:{root}: {path.name} has no answers beside it; put {answers_name} there")
    folder, answers = image_folder(root, part), _answers(answers_file)
    content, by_image = read_json(path), dict[str, list[Question]]()
    try:
        for row in content["questions"]:
            credit, kind = answers[row["question_id"]]
            name = f"{folder}/COCO_{part}_{int(row['image_id']):012d}.jpg"
            by_image.setdefault(name, []).append(Question(row["question"].lower(), credit, kind))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, KeyError) and isinstance(row := error.args[0], int):
            raise InputError(
                f"{path}: question {row} has no answers in {answers_file.name}; download both files of one release"
            ) from error
        raise bad_layout(path, error, "questions with question_id, image_id and question") from error
    return by_image


def _answers(path: Path) -> Mapping[int, tuple[dict[str, float], str]]:
    """Returns (credit of the answers, kind of answer) by the number of a question."""
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
