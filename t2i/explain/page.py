"""The page of one prompt: its image, a map for each word, and what each word adds to the score of an image-text encoder."""

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
HEAT = np.array([235.0, 84.0, 16.0])  # the colour of a map at its peak


def shares_of(scorer: ImageTextExtractor, image_HWC: ImageArray, prompt: str, words: Sequence[Word]) -> Shares:
    """Shapley values of the words for the cosine of the image and the prompt; a word that does not take part is left out."""
    (own_D,) = unit_rows(scorer.features(image_HWC[None]))

    def score(sets: Sets) -> list[float]:
        texts = [_kept(prompt, words, members) for members in sets]
        unique = list(dict.fromkeys(texts))
        found = dict(zip(unique, unit_rows(scorer.text_features(unique)) @ own_D, strict=True))
        return [float(found[text]) for text in texts]

    return shapley(len(words), score)


def _kept(prompt: str, words: Sequence[Word], members: frozenset[int]) -> str:
    """The prompt without the words that are no members."""
    kept, at = "", 0
    for i, word in enumerate(words):
        kept += prompt[at : word.end if i in members else word.start]
        at = word.end
    return " ".join((kept + prompt[at:]).split())


def overlay(image_HWC: ImageArray, map_hw: Map) -> ImageArray:
    """The image in pale grey, under the positive part of a map from clear to HEAT at its peak."""
    share = np.clip(map_hw, 0, None) / max(float(map_hw.max()), 1e-12)
    size = image_HWC.shape[1], image_HWC.shape[0]
    alpha = np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.NEAREST))[..., None]
    grey = 96 + image_HWC.mean(axis=2, keepdims=True) * 0.55
    return ((1 - alpha) * grey + alpha * HEAT).round().astype(np.uint8)


def write_page(
    out: Path, facts: dict[str, str], prompt: str, words: Sequence[Word], maps: Maps, shares: Shares
) -> None:
    """Writes the page, whole or not at all.

    Args:
        facts: what the page says of the model, by name.

    Raises:
        InputError: `out` cannot be written.
    """
    largest = max(float(np.abs(shares.values).max()), 1e-12)
    rows: list[dict[str, Any]] = [
        {
            "word": word.text,
            "map": inline(overlay(maps.image_HWC, found)),
            "attention": None if seen is None else inline(overlay(maps.image_HWC, seen)),
            "share_of_attention": None if seen is None else f"{seen.max():.3g}",
            "peak": f"{found.max():.3g}",
            "others": " ".join(other or "nothing" for other in word.others),
            "share": f"{value:+.3f}",
            "width": round(100 * abs(value) / largest),
            "positive": bool(value >= 0),
        }
        for word, found, seen, value in zip(
            words, maps.words, maps.attention or [None] * len(words), shares.values, strict=True
        )
    ]
    values = {"prompt": prompt, "image": inline(maps.image_HWC), "rows": rows, "unit": maps.unit, "facts": facts}
    values["attends"] = maps.attention is not None
    sums = {"whole": f"{shares.whole:.3f}", "base": f"{shares.none:.3f}"}
    look = style("chart.css", "style.css")
    write_text(out, render("page.html", FOLDER, title=f"explain: {prompt}", style=look, **values, **sums))
