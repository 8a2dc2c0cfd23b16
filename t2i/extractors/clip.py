"""CLIP as an extractor (Radford et al., 2021): both towers of a folder as transformers writes it, or of a model on the hub."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.extractors.batches import batch_size, check_images, exact_float32, in_fixed_batches
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.pretrained import digest_folder, load_model, local_folder


def open_clip(path: str, resize: Resize = "clean", device: str = "cpu") -> "CLIPExtractor":
    """For `EXTRACTORS`: `clip:folder` or `clip:owner/name`. It names its own preprocessing, so no other resize is taken."""
    if resize != "clean":
        raise InputError(f"resize {resize!r} is for the Inception; a CLIP folder has its own preprocessor_config.json")
    return CLIPExtractor(local_folder(path, "CLIP"), device)


class CLIPExtractor:
    """Both towers of a CLIP folder: config.json, *.safetensors, preprocessor_config.json, tokenizer."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Raises InputError: no such folder, another kind of model, or weights that do not fill the model."""
        self._device = device
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        def processor(place: Path, **options: Any) -> Any:
            return AutoImageProcessor.from_pretrained(place, backend="pil", **options)

        self.model, self.image_processor, self._tokenizer = load_model(
            path, "CLIP", "clip", CLIPModel.from_pretrained, processor, AutoTokenizer.from_pretrained
        )
        self.model.requires_grad_(False).eval().to(device)
        self._max_tokens: int = self.model.config.text_config.max_position_embeddings
        self.dim: int = self.model.config.projection_dim
        # The class tells Pillow's resize from torchvision's, which differ by a grey level.
        self.resize = f"preprocessor_config.json by {type(self.image_processor).__name__}"
        self._digest = digest_folder(path)
        vision = self.model.config.vision_config
        size = {768: "b", 1024: "l", 1280: "h"}.get(vision.hidden_size, str(vision.hidden_size))
        self.name = f"clip-vit-{size}-{vision.patch_size}-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """uint8 [B, H, W, 3] -> float32 [B, D], not normalised."""
        return in_fixed_batches(self._run_images, check_images(images_BHWC), batch_size(self._device), self.dim)

    def text_features(self, captions: Sequence[str]) -> Features:
        """B captions -> float32 [B, D], not normalised.

        Captions over the tower's limit are cut before their end token; one warning a call counts them.
        """
        if not captions:
            return np.zeros((0, self.dim), dtype=np.float32)
        lengths = [len(ids) for ids in self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]
        if cut := sum(length > self._max_tokens for length in lengths):
            warnings.warn(
                f"{cut} of {len(captions)} captions are over the {self._max_tokens} tokens of {self.name} and were cut",
                stacklevel=2,
            )
        tokens = self._tokenizer(
            list(captions), truncation=True, max_length=self._max_tokens, padding="max_length", return_tensors="np"
        )
        pairs = np.stack([tokens["input_ids"], tokens["attention_mask"]], axis=1)
        return in_fixed_batches(self._run_tokens, pairs, batch_size(self._device), self.dim)

    def _run_images(self, images_BHWC: ImageArray) -> Features:
        batch = self.image_processor(images=list(images_BHWC), return_tensors="pt", input_data_format="channels_last")
        with exact_float32(self._device):
            return _pooled(self.model.get_image_features(pixel_values=batch["pixel_values"].to(self._device)))

    def _run_tokens(self, pairs_B2T: np.ndarray) -> Features:
        ids_BT, mask_BT = torch.from_numpy(pairs_B2T).to(self._device).unbind(dim=1)
        with exact_float32(self._device):
            return _pooled(self.model.get_text_features(input_ids=ids_BT, attention_mask=mask_BT))


def _pooled(output: Any) -> Features:
    # transformers returns the projected features inside an output object since 5.0, as a bare tensor before.
    return getattr(output, "pooler_output", output).cpu().numpy()
