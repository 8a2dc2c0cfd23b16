"""Questions about the embedded data from facts: of a scene, or of what a caption asks for. Yes and no are equally often right.

A question names an object only by what no other object of the scene shares, so it has one answer.
"""

from collections.abc import Callable, Iterator, Sequence
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
    """All that is true of a scene, as a caption would say it that leaves nothing open."""
    count, layout = int((scenes.shape_NM[row] >= 0).sum()), int(scenes.layout_N[row])
    shapes, colors, sizes = (
        tuple(int(x) for x in its[row][:count]) for its in (scenes.shape_NM, scenes.color_NM, scenes.size_NM)
    )
    cell = layout if count == 1 else None
    return Spec(shapes, colors, sizes, LAYOUT_RELATIONS[layout], cell, int(scenes.background_N[row]))


def questions_about(facts: Spec, key: int) -> list[Question]:
    """Questions of every kind that the facts answer, a function of the facts and `key` alone.

    Args:
        key: decides the wording, which objects are asked about, and whether yes or no is right.
    """
    draws = iter(seeding.uniform(0, "questions", [key], _DRAWS)[0].tolist())

    def draw(n: int) -> int:
        return int(next(draws) * n)

    asked = [_count(facts, draw), _exists(facts, draw), _background(facts, draw)]
    asked += [_attribute(facts, kind, draw) for kind in ("colour", "shape", "size")]
    asked += [_relation(facts, draw)]
    return [question for question in asked if question is not None]


class SceneQuestions(Sequence[Sequence[Question]]):
    """The questions of each image of a split, made when asked for."""

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

    def __iter__(self) -> Iterator[list[Question]]:
        return (self[row] for row in range(len(self)))


# ---- one kind each; None: these facts answer no such question ------------------------------------------------------


def _say(word: str, draw: Draw) -> str:
    options = SYNONYMS[word]
    return options[0] if draw(10) < 6 else options[draw(len(options))]


def _one(answer: str) -> dict[str, float]:
    return {answer: 1.0}


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith(("s", "x")) else f"{word}s"


def _colour_word(draw: Draw) -> str:
    return ("colour", "color")[draw(4) == 0]


def _name(facts: Spec, k: int, draw: Draw) -> str | None:
    """Colour and shape of object k; None where another object has both."""
    looks = list(zip(facts.shapes, facts.colors, strict=True))
    if looks.count(looks[k]) > 1:
        return None
    return f"{_say(COLORS[facts.colors[k]], draw)} {_say(SHAPES[facts.shapes[k]], draw)}"


def _count(facts: Spec, draw: Draw) -> Question:
    form, other = draw(4), draw(2)
    if form < 2:
        return Question(
            ("how many objects are there?", "how many shapes are there?")[form], _one(str(len(facts.shapes))), "count"
        )
    table, its = (SHAPES, facts.shapes) if form == 2 else (COLORS, facts.colors)
    wanted = draw(len(table)) if other else its[draw(len(its))]
    word = _say(table[wanted], draw)
    what = _plural(word) if form == 2 else f"{word} objects"
    return Question(f"how many {what} are there?", _one(str(its.count(wanted))), "count")


def _exists(facts: Spec, draw: Draw) -> Question:
    """No: an object of the scene with another colour or another shape, such as the scene does not hold."""
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
    return Question(f"is there {article} {' '.join(words)}?", _one("yes" if yes else "no"), "exists")


def _background(facts: Spec, draw: Draw) -> Question | None:
    if facts.background is None:
        return None
    if draw(2):
        return Question(
            f"what {_colour_word(draw)} is the background?", _one(BACKGROUNDS[facts.background]), "background"
        )
    yes = draw(2)
    shown = facts.background if yes else (facts.background + 1 + draw(2)) % len(BACKGROUNDS)
    return Question(f"is the background {_say(BACKGROUNDS[shown], draw)}?", _one("yes" if yes else "no"), "background")


def _attribute(facts: Spec, kind: str, draw: Draw) -> Question | None:
    """Of an object that another attribute tells from the others."""
    k = draw(len(facts.shapes))
    shape, color, size = facts.shapes[k], facts.colors[k], facts.sizes[k]
    if kind == "colour" and facts.shapes.count(shape) == 1:
        return Question(f"what {_colour_word(draw)} is the {_say(SHAPES[shape], draw)}?", _one(COLORS[color]), kind)
    if kind == "shape" and facts.colors.count(color) == 1:
        return Question(f"what shape is the {_say(COLORS[color], draw)} object?", _one(SHAPES[shape]), kind)
    name = _name(facts, k, draw)
    if kind == "size" and size is not None and name is not None:
        return Question((f"what size is the {name}?", f"how big is the {name}?")[draw(2)], _one(SIZES[size]), kind)
    return None


def _relation(facts: Spec, draw: Draw) -> Question | None:
    """No: the opposite relation, so that only the places tell."""
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
    return Question(f"is the {names[0]} {_say(word, draw)} the {names[1]}?", _one("yes" if yes else "no"), "relation")


def kinds_in(questions: Sequence[Sequence[Question]]) -> list[str]:
    """The kinds of question there are, each once."""
    return list(dict.fromkeys(question.kind for several in questions for question in several))
