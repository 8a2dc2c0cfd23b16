"""Exchanges two attributes in captions, which then have the same words but describe another image.

A bag of words cannot distinguish the two (Yuksekgonul et al., "When and why vision-language models behave like bags-of-words",
ICLR 2023). Only words of the same kind are exchanged, so that the sentence stays grammatical.
"""

import re
from collections.abc import Sequence
from itertools import combinations

from t2i import seeding
from t2i.data.shapes.captions import SYNONYMS, meaning, parse
from t2i.data.shapes.vocabulary import SHAPES

KINDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(
        "red orange yellow green cyan turquoise blue purple violet pink brown black white grey gray beige golden silver".split()
    ),
    "size": tuple("small large big tiny huge little tall short long wide narrow thick thin".split()),
    "shape": (*(w for s in SHAPES for w in SYNONYMS[s] if " " not in w), "round", "rectangular", "triangular", "oval"),
    "material": tuple("wooden metal metallic plastic glass stone brick leather paper cotton woollen concrete".split()),
    "pattern": tuple("striped spotted dotted plain checkered floral furry fluffy shiny smooth rough".split()),
    "age": tuple("old young new ancient modern".split()),
    "state": tuple("open closed wet dry clean dirty full empty hot cold dark bright".split()),
}
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = re.compile(r"\w+")


def exchanges(caption: str) -> list[str]:
    """Returns the caption with two attributes of one kind exchanged, for each pair of attributes that changes its meaning.

    The result for a caption of rendered shapes is a caption of the same grammar.
    """
    words = [(match, _KIND_OF[match[0].lower()]) for match in _WORD.finditer(caption) if match[0].lower() in _KIND_OF]
    original, rendered, swapped = meaning(caption), parse(caption) is not None, {}
    for (a, kind), (b, other) in combinations(words, 2):
        if kind != other or a[0].lower() == b[0].lower():
            continue
        text = caption[: a.start()] + b[0] + caption[a.end() : b.start()] + a[0] + caption[b.end() :]
        if meaning(text) != original and (not rendered or parse(text) is not None):
            swapped[text] = None
    return list(swapped)


def exchanged(captions: Sequence[str], sample_ids: Sequence[int] | None = None, seed: int = 0) -> list[str | None]:
    """Returns one exchange of each caption, None for captions without two attributes of one kind.

    Args:
        sample_ids: determine the exchange together with the seed; None: the captions do, for evaluation.
    """
    ids = seeding.ids_of(captions) if sample_ids is None else sample_ids
    draws = seeding.uniform(seed, "exchange", ids, 1)[:, 0].tolist()
    options = [exchanges(caption) for caption in captions]
    return [own[int(u * len(own))] if own else None for own, u in zip(options, draws, strict=True)]
