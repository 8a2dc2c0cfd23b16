"""Text-to-image generative modelling: frozen text encoders, GANs and priors over image tokens, scores with a protocol."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.pipeline import TextToImagePipeline as TextToImagePipeline
    from t2i.reader.reading import Reader as Reader

__version__ = "0.1.0"
LAZY = {
    "Reader": "t2i.reader.reading",
    "TextToImagePipeline": "t2i.pipeline",
}  # imported on first use, as they need torch


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 't2i' has no attribute {name!r}")
    return getattr(import_module(LAZY[name]), name)
