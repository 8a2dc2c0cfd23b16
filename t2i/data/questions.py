"""Questions about images and their answers, whatever they come from: scene facts, VQAv2, TIFA or DSG. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from t2i.data import Dataset
from t2i.errors import InputError


class Question(NamedTuple):
    """One question about an image.

    Attributes:
        answers: each accepted answer with its credit in (0, 1]; 1 is a right answer.
        kind: what it asks about: `count`, `colour`, `relation`, ...
        parents: places, in the list of the image's questions, of those that make no sense unless the answer to them is right.
        choices: the answers to choose from; none: any.
    """

    text: str
    answers: Mapping[str, float]
    kind: str = ""
    parents: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()


def normal_answer(answer: str) -> str:
    """An answer without what does not change its meaning: case, white space, a full stop, a number as a word."""
    words = " ".join(answer.lower().strip(" .").split())
    return _NUMBERS.get(words, words)


_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}


def vqa_credit(answers: Iterable[str]) -> dict[str, float]:
    """The credit of each answer by how many people gave it: min(n / 3, 1) (Antol et al., ICCV 2015)."""
    counts: dict[str, int] = {}
    for answer in map(normal_answer, answers):
        counts[answer] = counts.get(answer, 0) + 1
    return {answer: min(count / 3, 1.0) for answer, count in counts.items()}


def questions_of(dataset: Dataset) -> Sequence[Sequence[Question]]:
    """The questions of each image of a data set, in the order of its rows; those of scenes are made when asked for.

    Raises:
        InputError: the data has no questions with answers.
    """
    found = getattr(dataset, "questions", None)
    if found is None:
        raise InputError(
            f"data {dataset.address} has no questions with answers; give shapes-1, shapes-2, shapes-3 or vqa2:/path, or "
            "train captions alone with --set tasks.answer=0"
        )
    return found
