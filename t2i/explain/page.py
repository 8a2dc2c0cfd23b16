"""Writes the page of a prompt: its image, a map for each word, and the Shapley value of each word for a score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.explain.maps import Map, Maps
from t2i.explain.shapley import Sets, Shares, shapley
from t2i.explain.words import Word
from t2i.extractors import ImageTextExtractor
from t2i.files import write_text
from t2i.images import ImageArray
from t2i.metrics.statistics import unit_rows
from t2i.report.template import inline, render, style

FOLDER = Path(__file__).parent
HEAT = np.array([235.0, 84.0, 16.0])  # colour of a map at its peak


def shares_of(scorer: ImageTextExtractor, image_HWC: ImageArray, prompt: str, words: Sequence[Word]) -> Shares:
    """Computes Shapley values of the words for the cosine of image and prompt; absent words are removed from the prompt."""
    (image_D,) = unit_rows(scorer.features(image_HWC[None]))

    def score(sets: Sets) -> list[float]:
        texts = [_subset(prompt, words, members) for members in sets]
        unique = list(dict.fromkeys(texts))
        cosine = dict(zip(unique, unit_rows(scorer.text_features(unique)) @ image_D, strict=True))
        return [float(cosine[text]) for text in texts]

    return shapley(len(words), score)


def _subset(prompt: str, words: Sequence[Word], members: frozenset[int]) -> str:
    """Returns the prompt with only those of the words that are members."""
    text, position = "", 0
    for i, word in enumerate(words):
        text += prompt[position : word.end if i in members else word.start]
        position = word.end
    return " ".join((text + prompt[position:]).split())


def overlay(image_HWC: ImageArray, map_hw: Map) -> ImageArray:
    """Draws the positive part of a map over the image in pale grey, from transparent to HEAT at its peak."""
    share = np.clip(map_hw, 0, None) / max(float(map_hw.max()), 1e-12)
    size = image_HWC.shape[1], image_HWC.shape[0]
    alpha = np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.NEAREST))[..., None]
    grey = 96 + image_HWC.mean(axis=2, keepdims=True) * 0.55
    return ((1 - alpha) * grey + alpha * HEAT).round().astype(np.uint8)


def write_page(
    out: Path, facts: dict[str, str], prompt: str, words: Sequence[Word], maps: Maps, shares: Shares
) -> None:
    """Writes the page atomically.

    Args:
        facts: facts about the model, by name.

    Raises:
        InputError: `out` cannot be written.
    """
    largest = max(float(np.abs(shares.values).max()), 1e-12)
    rows: list[dict[str, Any]] = [
        {
            "word": word.text,
            "map": inline(overlay(maps.image_HWC, word_map)),
            "attention": None if attention is None else inline(overlay(maps.image_HWC, attention)),
            "largest_share": None if attention is None else f"{attention.max():.3g}",
            "peak": f"{word_map.max():.3g}",
            "others": " ".join(other or "nothing" for other in word.others),
            "share": f"{value:+.3f}",
            "width": round(100 * abs(value) / largest),
            "positive": bool(value >= 0),
        }
        for word, word_map, attention, value in zip(
            words, maps.words, maps.attention or [None] * len(words), shares.values, strict=True
        )
    ]
    values = {"prompt": prompt, "image": inline(maps.image_HWC), "rows": rows, "unit": maps.unit, "facts": facts}
    values["attends"] = maps.attention is not None
    sums = {"whole": f"{shares.whole:.3f}", "base": f"{shares.none:.3f}"}
    css = style("chart.css", "style.css")
    write_text(out, render("page.html", FOLDER, title=f"explain: {prompt}", style=css, **values, **sums))
