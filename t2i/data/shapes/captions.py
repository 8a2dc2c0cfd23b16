"""Writes captions of shape scenes (`describe`) and reads the scene from a caption (`parse`), both by the same templates."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.typing import NDArray

from t2i import seeding
from t2i.data.shapes.scenes import Scenes
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, LAYOUT_RELATIONS, SHAPES, SIZES

# the first word is used in 60 % of the captions
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
    "white": ("white",),
    "black": ("black",),
    "grey": ("grey", "gray"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
CELLS = (
    ("in the top left corner", "at the top left"),
    ("at the top", "in the top middle"),
    ("in the top right corner", "at the top right"),
    ("on the left", "at the left edge"),
    ("in the centre", "in the middle"),
    ("on the right", "at the right edge"),
    ("in the bottom left corner", "at the bottom left"),
    ("at the bottom", "in the bottom middle"),
    ("in the bottom right corner", "at the bottom right"),
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# {a} {b} {c}: objects; {p}: position; {r}: relation of a to b; {q}: of the pair to c; {s}: of c to the pair; {g}: background
TEMPLATES: dict[int, tuple[str, ...]] = {
    1: (
        "{a} {p}",
        "there is {a} {p}",
        "a picture of {a} {p}",
        "{a} {p} on a {g} background",
        "a {g} background with {a} {p}",
        "on a {g} background, {a} {p}",
    ),
    2: (
        "{a} {r} {b}",
        "{a} is {r} {b}",
        "there is {a} {r} {b}",
        "{a} {r} {b} on a {g} background",
        "a {g} background with {a} {r} {b}",
        "on a {g} background, {a} is {r} {b}",
    ),
    3: (
        "{a} {r} {b}, both {q} {c}",
        "{a} {r} {b}, and {c} {s} them",
        "there is {a} {r} {b}, both {q} {c}",
        "{a} {r} {b}, both {q} {c}, on a {g} background",
        "a {g} background with {a} {r} {b}, and {c} {s} them",
        "on a {g} background, {a} is {r} {b}, and {c} is {s} them",
    ),
}
# for training captions only: without a position, a caption may occur in several splits
OPEN_TEMPLATE = "{a}"


@dataclass(frozen=True)
class Spec:
    """The scene that a caption describes, with objects in the order of mention. None: the caption does not say."""

    shapes: tuple[int, ...]
    colors: tuple[int, ...]
    sizes: tuple[int | None, ...]
    relations: tuple[tuple[int, int, int], ...]  # (first, 0 left of or 1 above, second)
    cell: int | None  # 0-8, of a single object
    background: int | None


def describe(scenes: Scenes, rows: NDArray, address: str, split: str, seed: int = 0) -> list[str]:
    """Returns one caption per scene; caption i is a function of (seed, address, split, i) and the scene."""
    draws = seeding.uniform(seed, f"{address}/{split}/caption", rows, 24)
    return [_sentence(scenes, i, iter(draws[i].tolist()), split == "train") for i in range(len(scenes))]


def _say(word: str, u: float) -> str:
    options = SYNONYMS[word]
    return options[0] if u < 0.6 or len(options) == 1 else options[1 + int((u - 0.6) / 0.4 * (len(options) - 1))]


def _sentence(scenes: Scenes, i: int, draws, training: bool) -> str:
    count, layout = int((scenes.shape_NM[i] >= 0).sum()), int(scenes.layout_N[i])
    u = next(draws)
    template = TEMPLATES[count][int(u * len(TEMPLATES[count]))]
    if training and count == 1 and next(draws) < 0.1:
        template = OPEN_TEMPLATE
    order = [0, 1, 2]
    flip = next(draws) < 0.5
    if flip and count > 1:
        order[:2] = [1, 0]
    words = {key: _object(scenes, i, slot, draws) for key, slot in zip("abc", order[:count], strict=False)}
    words["g"] = _say(BACKGROUNDS[scenes.background_N[i]], next(draws))
    if count == 1:
        words["p"] = CELLS[layout][int(next(draws) < 0.35)]
    else:
        words["r"] = _say(_relation(layout, order[0], order[1]), next(draws))
    if count == 3:
        words["q"] = _say(_relation(layout, 0, 2), next(draws))
        words["s"] = _say(_relation(layout, 2, 0), next(draws))
    return template.format(**words)


def _relation(layout: int, first: int, second: int) -> str:
    for a, relation, b in LAYOUT_RELATIONS[layout]:
        if (a, b) == (first, second):
            return ("left of", "above")[relation]
        if (b, a) == (first, second):
            return ("right of", "below")[relation]
    raise AssertionError(f"layout {layout} does not relate slots {first} and {second}")


def _object(scenes: Scenes, i: int, slot: int, draws) -> str:
    size = _say(SIZES[scenes.size_NM[i, slot]], next(draws))
    color = _say(COLORS[scenes.color_NM[i, slot]], next(draws))
    return f"a {size} {color} {_say(SHAPES[scenes.shape_NM[i, slot]], next(draws))}"


def _either(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(re.escape(w) for word in words for w in sorted(SYNONYMS[word], key=len, reverse=True)) + ")"


@cache
def _patterns() -> list[tuple[re.Pattern[str], int]]:
    places = "|".join(re.escape(phrase) for options in CELLS for phrase in options)
    relation = _either(("left of", "right of", "above", "below"))
    groups = {"p": f"(?P<p>{places})", "g": f"(?P<g>{_either(BACKGROUNDS)})"}
    groups |= {key: f"(?P<{key}>{relation})" for key in "rqs"}
    for key in "abc":
        size, color, shape = _either(SIZES), _either(COLORS), _either(SHAPES)
        groups[key] = f"an? (?:(?P<{key}_size>{size}) )?(?P<{key}_color>{color}) (?P<{key}_shape>{shape})"
    compiled = []
    for count, templates in {**TEMPLATES, 1: (*TEMPLATES[1], OPEN_TEMPLATE, "{a} on a {g} background")}.items():
        compiled += [
            (re.compile(re.escape(t).replace(r"\{", "{").replace(r"\}", "}").format(**groups)), count)
            for t in templates
        ]
    return compiled


@cache
def _index_of() -> dict[str, int]:
    tables = (SHAPES, COLORS, SIZES, BACKGROUNDS)
    return {synonym: i for table in tables for i, word in enumerate(table) for synonym in SYNONYMS[word]}


def _canonical_relation(phrase: str) -> str:
    return next(word for word in OPPOSITE if phrase in SYNONYMS[word])


def parse(caption: str) -> Spec | None:
    """Returns the scene that a caption of this data describes; None for other sentences. Sizes are optional."""
    text = " ".join(caption.lower().strip(" .").split())
    for pattern, count in _patterns():
        match = pattern.fullmatch(text)
        if match:
            return _spec(match.groupdict(), count)
    return None


def _spec(groups: dict[str, Any], count: int) -> Spec:
    """Returns the scene, from the groups of a pattern's match."""
    index, keys = _index_of(), "abc"[:count]
    relations: list[tuple[int, int, int]] = []

    def relate(first: int, phrase: str | None, second: int) -> None:
        if phrase:
            word = _canonical_relation(phrase)
            if word in ("right of", "below"):
                first, second, word = second, first, OPPOSITE[word]
            relations.append((first, ("left of", "above").index(word), second))

    relate(0, groups.get("r"), 1)
    for member in (0, 1):
        relate(member, groups.get("q"), 2)
        relate(2, groups.get("s"), member)
    place = groups.get("p")
    return Spec(
        shapes=tuple(index[groups[f"{k}_shape"]] for k in keys),
        colors=tuple(index[groups[f"{k}_color"]] for k in keys),
        sizes=tuple(index[groups[f"{k}_size"]] if groups[f"{k}_size"] else None for k in keys),
        relations=tuple(relations),
        cell=next((i for i, options in enumerate(CELLS) if place in options), None),
        background=index[groups["g"]] if groups.get("g") else None,
    )


def meaning(caption: str) -> str:
    """Returns a label that is equal for captions of the same objects in the same places; other sentences in lower case.

    The background is not part of the label, as many captions do not mention it.
    """
    spec = parse(caption)
    if spec is None:
        return " ".join(caption.lower().split())
    looks = [(s, c, -1 if z is None else z) for s, c, z in zip(spec.shapes, spec.colors, spec.sizes, strict=True)]
    relations = sorted((looks[a], relation, looks[b]) for a, relation, b in spec.relations)
    return repr((sorted(looks), relations, spec.cell))
