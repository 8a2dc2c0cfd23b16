"""Scores a reader on images with known captions or answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i.data import Dataset
from t2i.data.questions import Question, normal_answer, questions_about_label, questions_of
from t2i.data.shapes.captions import parse
from t2i.data.shapes.oracle import ATTRIBUTES, judge, read
from t2i.images import ImageArray
from t2i.reader.reading import Reader


def caption_faithfulness(images_BHWC: ImageArray, written: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Checks captions of rendered shapes by the oracle: returns attribute -> [B], True if a caption is correct.

    A caption outside the grammar is wrong in all attributes.
    """
    specs = [parse(caption) for caption in written]
    known = [k for k, spec in enumerate(specs) if spec is not None]
    correct = {name: np.zeros(len(written), bool) for name in ATTRIBUTES}
    if known:
        judged = judge(read(images_BHWC[known]), [specs[k] for k in known])  # type: ignore[misc]
        for name, flags in judged.items():
            correct[name][known] = flags
    return correct


def has_questions(reader: Reader, dataset: Dataset) -> bool:
    """Returns True if the data has answers to questions, or the label, that the reader has learned."""
    return any(_learned_of(reader, dataset))


def known_questions(reader: Reader, dataset: Dataset) -> list[list[Question]]:
    """Returns the questions about each image that the reader has learned, and that about its label, if the data has them.

    Raises:
        InputError: the data has neither.
    """
    answered, labelled = _learned_of(reader, dataset)
    needed = labelled or not reader.vocabulary.questions  # refuses data without the only thing that was learned
    labels = questions_about_label(dataset, reader.vocabulary.label) if needed else ()
    questions = questions_of(dataset) if answered or not labels else ()
    return [[question for own in (questions, labels) if own for question in own[row]] for row in range(len(dataset))]


def _learned_of(reader: Reader, dataset: Dataset) -> tuple[bool, bool]:
    """Returns True for answers to questions, and for the label, if the reader has learned them and the data has them."""
    learned, label = reader.vocabulary.questions, reader.vocabulary.label
    return (
        learned and getattr(dataset, "questions", None) is not None,
        label in (getattr(dataset, "labels", None) or {}),
    )


class Answered(NamedTuple):
    """Questions about images in one list, with a reader's answers."""

    image: NDArray[np.int64]  # row of the image that each question is about
    kinds: list[str]
    given: list[str]
    credit: NDArray[np.float64]  # credit of each answer; 0 if a parent question was answered wrongly

    def by_kind(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yields each kind of question with a mask of its questions; first "" with all questions."""
        kinds = np.array(self.kinds)
        yield "", np.ones(len(kinds), bool)
        for kind in dict.fromkeys(filter(None, self.kinds)):
            yield kind, kinds == kind


def ask(reader: Reader, cells: Sequence[Tensor] | Tensor, questions: Sequence[Sequence[Question]]) -> Answered:
    """Answers all questions about each image. For a question with choices, the likeliest choice is the answer.

    Args:
        cells: cells of the images, [B, L, D], or batches of them.
        questions: the questions about each image.
    """
    flat = [(row, question) for row, several in enumerate(questions) for question in several]
    whole = cells if isinstance(cells, Tensor) else torch.cat(list(cells))
    rows = np.array([row for row, _ in flat], np.int64)
    scores = reader.answer_scores(whole, torch.from_numpy(rows), [question.text for _, question in flat])
    place = {answer: k for k, answer in enumerate(reader.answers)}
    given = [_chosen(scores[k], reader.answers, place, question) for k, (_, question) in enumerate(flat)]
    credit = np.array([question.answers.get(answer, 0.0) for answer, (_, question) in zip(given, flat, strict=True)])
    return Answered(rows, [question.kind for _, question in flat], given, _without_orphans(credit, questions))


def _chosen(scores_A: NDArray[np.float32], answers: Sequence[str], place: Mapping[str, int], question: Question) -> str:
    known = [choice for choice in map(normal_answer, question.choices) if choice in place]
    if question.choices and not known:
        return ""
    return max(known, key=lambda choice: scores_A[place[choice]]) if known else answers[int(scores_A.argmax())]


def _without_orphans(credit: NDArray[np.float64], questions: Sequence[Sequence[Question]]) -> NDArray[np.float64]:
    """Sets the credit of questions to 0 if one of their parents was answered wrongly (Cho et al., ICLR 2024)."""
    credit, start = credit.copy(), 0
    for several in questions:
        credits = credit[start : start + len(several)]
        wrong = {k for k, value in enumerate(credits.tolist()) if value == 0}
        pending = True
        while pending:  # until grandchildren are included
            more = {k for k, question in enumerate(several) if k not in wrong and wrong.intersection(question.parents)}
            wrong, pending = wrong | more, bool(more)
        credits[list(wrong)] = 0.0
        start += len(several)
    return credit


def caption_scores(reader: Reader, images_BHWC: ImageArray, captions: Sequence[str]) -> dict[str, float]:
    """Returns `caption_nll`, in nats per token of the true captions; for rendered shapes also the share of written captions
    that are correct."""
    lengths = reader.tokenizer(list(captions))[1].sum(dim=1).numpy() - 1
    parts = list(reader.cells(images_BHWC))
    scores = {"caption_nll": float(-reader.likelihood_of(torch.cat(parts), captions).sum() / lengths.sum())}
    if all(map(parse, captions)):
        correct = caption_faithfulness(images_BHWC, [text for text, _ in reader.write_of(parts)])
        scores |= {f"caption_{name}": float(correct[name].mean()) for name in ("strict", "relation")}
    return scores


def answer_scores(reader: Reader, images_BHWC: ImageArray, questions: Sequence[Sequence[Question]]) -> dict[str, float]:
    """Returns `answers`, the mean credit over all questions, and `answers_KIND` for each kind."""
    answered = ask(reader, list(reader.cells(images_BHWC)), questions)
    kinds = np.array(answered.kinds)
    scores = {"answers": float(answered.credit.mean())}
    return scores | {
        f"answers_{kind}": float(answered.credit[kinds == kind].mean()) for kind in dict.fromkeys(answered.kinds)
    }
