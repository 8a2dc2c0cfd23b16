"""Finds the frozen networks that took part in a model's training, since they cannot judge its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.text import TextConfig, TextEncoder, fit_encoder
from t2i.text.aligned import AlignedEncoder


def trained_with(encoder: TextEncoder, manifest: Mapping[str, Any], clip: Path | None) -> dict[str, str]:
    """Returns the role of each encoder that took part in the training, by its digest.

    Args:
        clip: a CLIP folder to compare with the text encoder.
    """
    text, guide = encoder.digest(), manifest.get("guide_digest")
    # the digest of `aligned` includes its length limit, that of a scorer is the dual encoder's
    roles = {encoder.dual.digest() if isinstance(encoder, AlignedEncoder) else text: "text encoder"}
    if isinstance(encoder, AlignedEncoder):  # maps onto the space of another dual encoder
        roles |= dict.fromkeys(encoder.dual.built_on(), "text encoder's image side")
    if clip is not None and encoder.name == "clip":  # its digest covers only the text tower
        from t2i.extractors.clip import clip_folder

        same = TextConfig(encoder="clip", path=str(clip), max_tokens=encoder.max_tokens)
        if fit_encoder(same, []).digest() == text:
            roles[clip_folder(str(clip)).digest()] = "text encoder"
    roles |= dict.fromkeys(manifest.get("guide_built_on", ()), "guide's image side")
    return roles | ({guide: "guide"} if guide else {})
