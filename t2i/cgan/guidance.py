"""Provides a frozen image-text encoder as a training signal: a dual encoder of `t2i train align`, or a CLIP model.

Gradients flow to the images, not to the encoder. Since the run is optimised for this encoder, its digest is stored with the
run and scoring refuses it.
"""

from t2i.cgan.config import GuidanceConfig, NoGuidance, TextGuidance
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.text import TextEncoder


def make_guide(config: GuidanceConfig, encoder: TextEncoder) -> ImageTextExtractor | None:
    """Returns the guide that a config names, on the CPU; None for `none`.

    Raises:
        InputError: the text encoder, or the model at the path, has no image tower.
    """
    if isinstance(config, NoGuidance) or config.weight == 0:
        return None
    if isinstance(config, TextGuidance):
        from t2i.extractors.aligned import AlignedExtractor
        from t2i.text.aligned import AlignedEncoder

        if not isinstance(encoder, AlignedEncoder):
            raise InputError(
                f"guidance.encoder is text, but the text encoder {encoder.name} has no image tower; set guidance.encoder "
                "to aligned or clip and guidance.path, or to none"
            )
        return AlignedExtractor(encoder.dual)
    kind = {"clip": "clip", "aligned": "align"}[config.encoder]
    return open_image_text(f"{kind}:{config.path}")
