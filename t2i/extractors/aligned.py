"""The embedded extractor: the dual encoder that ships with the package, or another one of `t2i train align`.

Its picture embeddings give `fid-shapes` and `kid-shapes`, both towers `clip-aligned`. It was trained on drawn shapes
and says little of other pictures. Another encoder stands in the names of its scores by its digest.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from t2i.align.frozen import FrozenDualEncoder, load_dual_encoder
from t2i.extractors.batches import check_images, exact_float32, in_fixed_batches
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.weights import scorer_dir

BATCH = 64


def open_scorer(path: Path | None = None) -> "Scorer":
    """The dual encoder at `path`, a run of `t2i train align` or a saved one; None: the one that ships with the package.

    Raises:
        InputError: there is none, or it is damaged.
    """
    place = scorer_dir() if path is None else path
    return Scorer(load_dual_encoder(place), embedded=place.resolve() == scorer_dir().resolve())


class Scorer:
    """A frozen dual encoder as an `ImageTextExtractor`.

    Attributes:
        name: names its picture features: `shapes` for the embedded one, `align-DIGEST` for another.
        clip_name: names it where both towers judge: `aligned`, or as `name`.
        embedded: whether it is the one of the package.
    """

    def __init__(self, dual: FrozenDualEncoder, embedded: bool) -> None:
        self._dual, self.embedded = dual, embedded
        self._digest = dual.digest()
        self.name = "shapes" if embedded else f"align-{self._digest[:8]}"
        self.clip_name = "aligned" if embedded else self.name
        self.dim: int = dual.config.embedding
        side = dual.config.data.resolution
        self.resize = f"antialiased bilinear to {side}x{side}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """uint8 [B, H, W, 3] of any size -> unit-length float32 [B, D]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), BATCH, self.dim)

    def text_features(self, captions: Sequence[str]) -> Features:
        """B captions -> unit-length float32 [B, D]. One warning a call counts the captions that were cut."""
        limit = self._dual.tokenizer.max_tokens
        if cut := self._dual.tokenizer(captions)[2]:
            warnings.warn(
                f"{cut} of {len(captions)} captions are over the {limit} tokens of {self.clip_name} and were cut",
                stacklevel=2,
            )
        with exact_float32("cpu"):
            return self._dual.text(captions).numpy()

    def _run(self, images_BHWC: ImageArray) -> Features:
        with exact_float32("cpu"):
            return self._dual.images(images_BHWC).numpy()
