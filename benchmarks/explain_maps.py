"""Measures how often the map of a word is larger at the object that the word describes.

    python benchmarks/explain_maps.py prior cgan cvae

60 captions of two objects (val of shapes-2), an image each, a map for each colour and shape: 240 words; and maps of attention
if the network attends to words. A word is right if its map is larger in the half of the image where the caption places its
object than in the other half. Chance: the same maps against the halves of the next scene.
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
    """Returns captions of two objects with different colours and shapes, whose words occur once each."""
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
    """Returns [2, rows, columns]: the halves where the first and the second object of the caption belong."""
    spec = parse(caption)
    assert spec is not None
    first, axis, _ = spec.relations[0]  # first is left of, or above, the other
    start = np.indices((rows, columns))[1 - axis] < (columns, rows)[axis] / 2
    return np.stack([start, ~start][:: 1 if first == 0 else -1])


def run(name: str) -> None:
    pipe = TextToImagePipeline.from_pretrained(name)
    captions = two_objects()
    right: dict[tuple[str, str], list[bool]] = {}
    chance: dict[tuple[str, str], list[bool]] = {}
    for k, caption in enumerate(captions):
        words = words_of(caption)
        kinds = [next((kind for kind, known in KINDS.items() if word.text.lower() in known), None) for word in words]
        maps = maps_of(pipe, caption, words, 0)
        for what, found in (("change", maps.words), ("attention", maps.attention or [])):
            for whose, store in ((caption, right), (captions[(k + 1) % len(captions)], chance)):
                for kind in KINDS:
                    own = [one for one, of in zip(found, kinds, strict=False) if of == kind]
                    judged = [outweighs(one, i, whose) for i, one in enumerate(own)]
                    store.setdefault((what, kind), []).extend(judged)
    for (what, kind), found in right.items():
        if found:
            print(
                f"{name}: own object outweighs the other by {what} for {kind} {np.mean(found):.3f} of {len(found)}, "
                f"chance {np.mean(chance[what, kind]):.3f}",
                flush=True,
            )


def outweighs(found: np.ndarray, i: int, caption: str) -> bool:
    """Returns True if a map is larger in the half of object i of the caption."""
    inside = (np.clip(found, 0, None) * halves(caption, *found.shape)).sum(axis=(1, 2))
    return bool(inside[i] > inside[1 - i])


if __name__ == "__main__":
    for model in sys.argv[1:]:
        run(model)
