"""The frozen networks that took part in a model's training, which cannot judge its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.text import TextConfig, TextEncoder, fit_encoder
from t2i.text.aligned import AlignedEncoder


def trained_with(encoder: TextEncoder, manifest: Mapping[str, Any], clip: Path | None) -> dict[str, str]:
    """Digests of the encoders that took part in the training, and what they did."""
    text, guide = encoder.digest(), manifest.get("guide_digest")
    # the digest of `aligned` also tells its length limit, a scorer's is of the dual encoder alone
    found = {encoder.dual.digest() if isinstance(encoder, AlignedEncoder) else text: "text encoder"}
    if isinstance(encoder, AlignedEncoder):  # maps onto the space of another dual encoder
        found |= dict.fromkeys(encoder.dual.built_on(), "text encoder's image side")
    if clip is not None and encoder.name == "clip":  # whose digest is of the text tower alone
        from t2i.extractors.clip import clip_folder

        same = TextConfig(encoder="clip", path=str(clip), max_tokens=encoder.max_tokens)
        if fit_encoder(same, []).digest() == text:
            found[clip_folder(str(clip)).digest()] = "text encoder"
    built_on = dict.fromkeys(manifest.get("guide_built_on", ()), "guide's image side")
    return found | built_on | ({guide: "guide"} if guide else {})
