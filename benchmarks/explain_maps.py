"""Do the maps of words fall on the objects that the words are of?

    python benchmarks/explain_maps.py prior cgan

60 captions of two objects (val of shapes-2), an image each, a map for each colour and shape: 240 words. A word is right if its
map is larger in the half of the image where the caption has its object than in the other. Chance: the same maps against
the halves of the next scene.
"""

import sys

import numpy as np

from t2i.data import View, open_dataset
from t2i.data.shapes.captions import SYNONYMS, parse
from t2i.data.shapes.vocabulary import COLORS, SHAPES
from t2i.explain.maps import maps_of
from t2i.explain.words import words_of
from t2i.pipeline import TextToImagePipeline

SCENES = 60
KINDS = {
    "colour": {word for name in COLORS for word in SYNONYMS[name]},
    "shape": {w for n in SHAPES for w in SYNONYMS[n]},
}


def two_objects() -> list[str]:
    """Captions of two objects whose words each occur once, the colours and shapes being different."""
    data = open_dataset("shapes-2", "val", View(limit=1000))
    found = []
    for (caption,) in data.captions:
        spec = parse(caption)
        if (
            spec
            and len(spec.shapes) == 2
            and len(set(spec.colors)) == len(set(spec.shapes)) == 2
            and "plus" not in caption
        ):
            found.append(caption)
    return found[:SCENES]


def halves(caption: str, rows: int, columns: int) -> np.ndarray:
    """[2, rows, columns]: where the object that is named first, and second, belongs."""
    spec = parse(caption)
    assert spec is not None
    first, axis, _ = spec.relations[0]  # first is left of, or above, the other
    start = np.indices((rows, columns))[1 - axis] < (columns, rows)[axis] / 2
    return np.stack([start, ~start][:: 1 if first == 0 else -1])


def run(name: str) -> None:
    pipe = TextToImagePipeline.from_pretrained(name)
    captions = two_objects()
    right: dict[str, list[bool]] = {"colour": [], "shape": []}
    chance: dict[str, list[bool]] = {"colour": [], "shape": []}
    for k, caption in enumerate(captions):
        every = words_of(caption)
        words = [(kind, word) for word in every for kind, known in KINDS.items() if word.text.lower() in known]
        maps = maps_of(pipe, caption, [word for _, word in words], 0).words
        seen = {"colour": 0, "shape": 0}
        for (kind, _), found in zip(words, maps, strict=True):
            for whose, store in ((caption, right), (captions[(k + 1) % len(captions)], chance)):
                inside = np.clip(found, 0, None) * halves(whose, *found.shape)
                own = inside.sum(axis=(1, 2))
                store[kind].append(bool(own[seen[kind]] > own[1 - seen[kind]]))
            seen[kind] += 1
    for kind in right:
        print(
            f"{name}: own object outweighs the other for {kind} {np.mean(right[kind]):.3f} of {len(right[kind])}, "
            f"chance {np.mean(chance[kind]):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    for model in sys.argv[1:]:
        run(model)
