"""Frozen image-text similarity as a training signal: the dual encoder of `t2i train align`, or a CLIP folder.

Gradients flow to the images and never to the encoder. An encoder used here has been optimised against, so its digest is
kept with the run and it is refused as that run's scorer.
"""

from t2i.cgan.config import GuidanceConfig, NoGuidance, TextGuidance
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.text import TextEncoder


def make_guide(config: GuidanceConfig, encoder: TextEncoder) -> ImageTextExtractor | None:
    """Returns the guide that a config asks for, on the CPU; None for `none`.

    Raises:
        InputError: the text encoder has no image tower, or the path holds none.
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
