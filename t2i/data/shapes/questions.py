"""Generates questions about the embedded data from the facts of a scene or of a caption.

A question identifies an object by attributes that no other object of the scene has, so it has one answer. Yes and no are equally
often correct.
"""

from collections.abc import Callable, Sequence
from typing import overload

from t2i import seeding
from t2i.data.questions import Question
from t2i.data.shapes.captions import OPPOSITE, SYNONYMS, Spec
from t2i.data.shapes.scenes import Scenes
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, LAYOUT_RELATIONS, SHAPES, SIZES

KINDS = ("count", "colour", "shape", "size", "exists", "relation", "background")
_DRAWS = 64
Draw = Callable[[int], int]  # a whole number below n


def facts_of(scenes: Scenes, row: int) -> Spec:
    """Returns all facts of a scene."""
    count, layout = int((scenes.shape_NM[row] >= 0).sum()), int(scenes.layout_N[row])
    shapes, colors, sizes = (
        tuple(int(x) for x in column[row][:count]) for column in (scenes.shape_NM, scenes.color_NM, scenes.size_NM)
    )
    cell = layout if count == 1 else None
    return Spec(shapes, colors, sizes, LAYOUT_RELATIONS[layout], cell, int(scenes.background_N[row]))


def questions_about(facts: Spec, key: int) -> list[Question]:
    """Returns a question of each kind that the facts answer, a function of the facts and `key` alone.

    Args:
        key: determines the wording, the objects of the questions, and the correct answer of yes-no questions.
    """
    draws = iter(seeding.uniform(0, "questions", [key], _DRAWS)[0].tolist())

    def draw(n: int) -> int:
        return int(next(draws) * n)

    questions = [_count(facts, draw), _exists(facts, draw), _background(facts, draw)]
    questions += [_attribute(facts, kind, draw) for kind in ("colour", "shape", "size")]
    questions += [_relation(facts, draw)]
    return [question for question in questions if question is not None]


class SceneQuestions(Sequence[Sequence[Question]]):
    """The questions of each image of a split, generated when they are accessed."""

    def __init__(self, scenes: Scenes, ids: Sequence[str]) -> None:
        self._scenes, self._keys = scenes, seeding.ids_of(ids)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, row: int) -> list[Question]: ...
    @overload
    def __getitem__(self, row: slice) -> list[list[Question]]: ...
    def __getitem__(self, row: int | slice) -> list[Question] | list[list[Question]]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        return questions_about(facts_of(self._scenes, row), int(self._keys[row]))


# ---- one function for each kind; None: the facts do not answer such a question -------------------------------------


def _say(word: str, draw: Draw) -> str:
    options = SYNONYMS[word]
    return options[0] if draw(10) < 6 else options[draw(len(options))]


def _question(text: str, answer: str, kind: str) -> Question:
    return Question(text, {answer: 1.0}, kind)


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith(("s", "x")) else f"{word}s"


def _colour_word(draw: Draw) -> str:
    return ("colour", "color")[draw(4) == 0]


def _name(facts: Spec, k: int, draw: Draw) -> str | None:
    """Returns colour and shape of object k; None if another object has both."""
    looks = list(zip(facts.shapes, facts.colors, strict=True))
    if looks.count(looks[k]) > 1:
        return None
    return f"{_say(COLORS[facts.colors[k]], draw)} {_say(SHAPES[facts.shapes[k]], draw)}"


def _count(facts: Spec, draw: Draw) -> Question:
    form, other = draw(4), draw(2)
    if form < 2:
        return _question(f"how many {('objects', 'shapes')[form]} are there?", str(len(facts.shapes)), "count")
    table, values = (SHAPES, facts.shapes) if form == 2 else (COLORS, facts.colors)
    value = draw(len(table)) if other else values[draw(len(values))]
    word = _say(table[value], draw)
    what = _plural(word) if form == 2 else f"{word} objects"
    return _question(f"how many {what} are there?", str(values.count(value)), "count")


def _exists(facts: Spec, draw: Draw) -> Question:
    """If the answer is no, names an object of the scene with a changed colour or shape that the scene does not have."""
    form, yes, k = draw(3), draw(2), draw(len(facts.shapes))  # form 0: by colour and shape; 1: by shape; 2: by colour
    shape, color = facts.shapes[k], facts.colors[k]
    looks = list(zip(facts.shapes, facts.colors, strict=True))
    if not yes:
        recolored, step = form == 2 or form == 0 and draw(2) == 1, 1 + draw(len(SHAPES) - 1)
        while (shape, color) in looks or form == 1 and shape in facts.shapes or form == 2 and color in facts.colors:
            color, shape = ((color + step) % len(COLORS), shape) if recolored else (color, (shape + step) % len(SHAPES))
            step = 1
    words = [_say(COLORS[color], draw)] if form != 1 else []
    words.append(_say(SHAPES[shape], draw) if form != 2 else "object")
    article = "an" if words[0][0] in "aeiou" else "a"
    return _question(f"is there {article} {' '.join(words)}?", "yes" if yes else "no", "exists")


def _background(facts: Spec, draw: Draw) -> Question | None:
    if facts.background is None:
        return None
    if draw(2):
        return _question(f"what {_colour_word(draw)} is the background?", BACKGROUNDS[facts.background], "background")
    yes = draw(2)
    named = facts.background if yes else (facts.background + 1 + draw(2)) % len(BACKGROUNDS)
    return _question(f"is the background {_say(BACKGROUNDS[named], draw)}?", "yes" if yes else "no", "background")


def _attribute(facts: Spec, kind: str, draw: Draw) -> Question | None:
    """Asks about an object that another attribute distinguishes from the others."""
    k = draw(len(facts.shapes))
    shape, color, size = facts.shapes[k], facts.colors[k], facts.sizes[k]
    if kind == "colour" and facts.shapes.count(shape) == 1:
        return _question(f"what {_colour_word(draw)} is the {_say(SHAPES[shape], draw)}?", COLORS[color], kind)
    if kind == "shape" and facts.colors.count(color) == 1:
        return _question(f"what shape is the {_say(COLORS[color], draw)} object?", SHAPES[shape], kind)
    name = _name(facts, k, draw)
    if kind == "size" and size is not None and name is not None:
        return _question((f"what size is the {name}?", f"how big is the {name}?")[draw(2)], SIZES[size], kind)
    return None


def _relation(facts: Spec, draw: Draw) -> Question | None:
    """If the answer is no, names the opposite relation, so that only the positions decide."""
    if not facts.relations:
        return None
    first, relation, second = facts.relations[draw(len(facts.relations))]
    names = [_name(facts, first, draw), _name(facts, second, draw)]
    if None in names:
        return None
    word, yes, turned = ("left of", "above")[relation], draw(2), draw(2)
    if turned:
        word, names = OPPOSITE[word], names[::-1]
    if not yes:
        word = OPPOSITE[word]
    return _question(f"is the {names[0]} {_say(word, draw)} the {names[1]}?", "yes" if yes else "no", "relation")
