"""Questions about scenes: every answer follows from the facts, and the question alone does not reveal it."""

import re
from collections import Counter

import pytest

from t2i.data import View, open_dataset
from t2i.data.questions import Question, normal_answer, questions_of, vqa_credit
from t2i.data.shapes.captions import OPPOSITE, SYNONYMS, Spec, parse
from t2i.data.shapes.questions import KINDS, facts_of, questions_about
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, SHAPES, SIZES
from t2i.errors import InputError

CANONICAL = {synonym: word for word, options in SYNONYMS.items() for synonym in options}
PLURAL = {f"{word}es" if word.endswith(("s", "x")) else f"{word}s": word for word in CANONICAL}


def objects(facts: Spec) -> list[tuple[str, str, str]]:
    return [
        (COLORS[c], SHAPES[s], SIZES[z] if z is not None else "?")
        for s, c, z in zip(facts.shapes, facts.colors, facts.sizes, strict=True)
    ]


def matching(facts: Spec, words: str) -> list[int]:
    """Returns the objects that `red plus sign`, `red object`, `rings` or `ring` names."""
    found = list(range(len(facts.shapes)))
    for word in sorted(CANONICAL, key=len, reverse=True):
        if re.search(rf"\b{word}\b", words):
            words = words.replace(word, "")
            found = [k for k in found if CANONICAL[word] in objects(facts)[k]]
    return found


def answer_of(facts: Spec, question: str) -> str:
    """Returns the answer from the question's words, in another way than it was generated."""
    text = question.rstrip("?").replace("color", "colour")
    if "background" in text:
        shown = BACKGROUNDS[facts.background or 0]
        asked = CANONICAL.get(text.split()[-1])
        return shown if text.startswith("what") else "yes" if asked == shown else "no"
    if text.startswith("how many"):
        what = text.removeprefix("how many ").removesuffix(" are there")
        what = PLURAL.get(what, what).removesuffix(" objects")
        return str(len(facts.shapes) if what in ("objects", "shapes") else len(matching(facts, what)))
    if text.startswith("is there"):
        return "yes" if matching(facts, text) else "no"
    if text.startswith("is the"):
        phrase = max((p for p in CANONICAL if f" {p} the " in text), key=len)
        first, second = text.removeprefix("is the ").split(f" {phrase} the ")
        (a,), (b,) = matching(facts, first), matching(facts, second)
        word = CANONICAL[phrase]
        if word in ("right of", "below"):
            a, b, word = b, a, OPPOSITE[word]
        return "yes" if (a, ("left of", "above").index(word), b) in facts.relations else "no"
    (k,) = matching(facts, text.partition(" the ")[2])
    place = {"what colour": 0, "what shape": 1}.get(" ".join(text.split()[:2]), 2)
    return objects(facts)[k][place]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_answer_follows_from_the_facts(level: int) -> None:
    dataset = open_dataset(f"shapes-{level}", "train", View(16, limit=400))
    kinds: Counter[str] = Counter()
    for row, several in enumerate(questions_of(dataset)):
        facts = facts_of(dataset.scenes, row)  # type: ignore[attr-defined]
        for question in several:
            assert question.answers == {answer_of(facts, question.text): 1.0}, (facts, question)
            kinds[question.kind] += 1
    assert set(kinds) == set(KINDS) - ({"relation"} if level == 1 else set())


def test_yes_and_no_are_equally_often_right() -> None:
    found: dict[str, Counter[str]] = {}
    for several in questions_of(open_dataset("shapes-2", "train", View(16, limit=4000))):
        for question in several:
            (answer,) = question.answers
            if answer in ("yes", "no"):
                found.setdefault(question.kind, Counter())[answer] += 1
    assert set(found) == {"exists", "relation", "background"}
    for counts in found.values():
        assert abs(counts["yes"] / counts.total() - 0.5) < 0.03


def test_the_facts_of_a_scene_are_what_its_caption_says() -> None:
    dataset = open_dataset("shapes-3", "train", View(16, limit=200))
    for row, (caption,) in enumerate(dataset.captions):
        spec, facts = parse(caption), facts_of(dataset.scenes, row)  # type: ignore[attr-defined]
        assert spec is not None
        assert sorted(zip(spec.shapes, spec.colors, strict=True)) == sorted(
            zip(facts.shapes, facts.colors, strict=True)
        )
        assert spec.background in (None, facts.background)


def test_questions_follow_from_facts_and_key_and_of_a_caption_ask_only_what_it_says() -> None:
    spec = parse("a red circle is above a blue star")
    assert spec is not None
    assert questions_about(spec, 5) == questions_about(spec, 5) != questions_about(spec, 6)
    several = [question for key in range(60) for question in questions_about(spec, key)]
    assert {question.kind for question in several} == {"count", "colour", "shape", "exists", "relation"}
    twins = Spec((0, 0), (1, 1), (0, 0), ((0, 0, 1),), None, 0)  # two alike: neither can be named
    kinds = {question.kind for key in range(60) for question in questions_about(twins, key)}
    assert kinds == {"count", "exists", "background"}


def test_credit_is_by_how_many_people_gave_an_answer() -> None:
    assert vqa_credit(["Two", "2", " two.", "3"] + ["four"] * 2) == {"2": 1.0, "3": 1 / 3, "4": 2 / 3}
    assert normal_answer(" A  Dog. ") == "a dog"


def test_data_without_questions_is_told_so(tmp_path) -> None:
    from builders.published_layouts import coco

    dataset = open_dataset(f"coco:{coco(tmp_path)}", "train", View(16))
    with pytest.raises(InputError, match="has no questions with answers; give shapes-1"):
        questions_of(dataset)
    assert Question("a", {"b": 1.0}).parents == ()
