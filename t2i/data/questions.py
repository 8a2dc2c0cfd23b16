"""Questions about images and their answers, from scene facts, VQAv2, TIFA or DSG. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from t2i.data import Dataset
from t2i.data.tools.labels import values_of
from t2i.errors import InputError


class Question(NamedTuple):
    """One question about an image.

    Attributes:
        answers: each accepted answer with its credit in (0, 1]; 1 for a correct answer.
        kind: subject of the question: `count`, `colour`, `relation`, ...
        parents: positions, in the list of the image's questions, of those that must be answered correctly for this one to count.
        choices: the answers to choose from; empty: any answer.
    """

    text: str
    answers: Mapping[str, float]
    kind: str = ""
    parents: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()


def normal_answer(answer: str) -> str:
    """Returns an answer without differences that do not change its meaning: case, white space, full stop, number words."""
    words = " ".join(answer.lower().strip(" .").split())
    return _NUMBERS.get(words, words)


_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}


def vqa_credit(answers: Iterable[str]) -> dict[str, float]:
    """Returns the credit of each answer by the number n of people who gave it: min(n / 3, 1) (Antol et al., ICCV 2015)."""
    counts: dict[str, int] = {}
    for answer in map(normal_answer, answers):
        counts[answer] = counts.get(answer, 0) + 1
    return {answer: min(count / 3, 1.0) for answer, count in counts.items()}


def label_question(label: str) -> str:
    """Returns the question whose answer is a class of the image."""
    return f"what is the {label}?"


def questions_about_label(dataset: Dataset, label: str) -> list[tuple[Question, ...]]:
    """Returns the question about a label for each image, with each of the image's classes as an answer; () without a class.

    Raises:
        InputError: the data does not have the label.
    """
    text = label_question(label)
    classes = (tuple(map(normal_answer, own or ())) for own in values_of(dataset, label))
    return [(Question(text, dict.fromkeys(own, 1.0), label),) if own else () for own in classes]


def questions_of(dataset: Dataset) -> Sequence[Sequence[Question]]:
    """Returns the questions of each image of a data set, in the order of its rows; those of scenes are generated when used.

    Raises:
        InputError: the data has no questions with answers.
    """
    questions = getattr(dataset, "questions", None)
    if questions is None:
        raise InputError(
            f"data {dataset.address} has no questions with answers; give shapes-1, shapes-2, shapes-3 or vqa2:/path, or "
            "train captions alone with --set tasks.answer=0"
        )
    return questions
