"""CLIP as an extractor (Radford et al., 2021): both towers of a folder of transformers, or of a model on the hub."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t2i.align.tokenizer import length_batches
from t2i.extractors import Resize
from t2i.extractors.batches import batch_size, check_images, exact_float32, in_fixed_batches
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.names import counted, verb
from t2i.pretrained import (
    ModelFolder,
    load_image_processor,
    load_model,
    load_text_tokenizer,
    open_folder,
)


def open_clip(path: str, resize: Resize = "clean", device: str = "cpu") -> "CLIPExtractor":
    """Opens `clip:FOLDER` or `clip:OWNER/NAME` for `EXTRACTORS`; CLIP has its own preprocessing."""
    return CLIPExtractor(clip_folder(path), device)


def clip_folder(path: str) -> ModelFolder:
    """Opens a CLIP folder; raises InputError if it does not exist or holds another kind of model."""
    return open_folder(path, f"CLIP folder {path}", ["clip"], lambda found: "not CLIP; name a whole CLIP model")


class CLIPExtractor:
    """Both towers of a CLIP folder: config.json, *.safetensors, preprocessor_config.json, tokenizer."""

    classes: NDArray[np.float32] | None = None

    def __init__(self, folder: ModelFolder, device: str = "cpu") -> None:
        """Raises InputError if weights, preprocessing or tokenizer are missing."""
        self._device = device
        # eager: scaled_dot_product_attention has another kernel, with other last bits, for batches without padding
        attention = {"text_config": "eager", "vision_config": "sdpa"}
        self._model: Any = load_model(folder, "CLIPModel", attn_implementation=attention)[0]
        self._tokenizer = load_text_tokenizer(folder, self._model.text_model)
        self._processor = load_image_processor(folder)
        self._model.to(device)
        self._max_tokens: int = self._model.config.text_config.max_position_embeddings
        self.dim: int = self._model.config.projection_dim
        self.scale = float(self._model.logit_scale.exp())
        # The class distinguishes Pillow's resize from torchvision's, which differ by up to a grey level.
        self.resize = f"preprocessor_config.json by {type(self._processor).__name__}"
        self._digest = folder.digest()
        vision = self._model.config.vision_config
        self.side = int(vision.image_size)
        size = {768: "b", 1024: "l", 1280: "h"}.get(vision.hidden_size, str(vision.hidden_size))
        self.name = self.clip_name = f"clip-vit-{size}-{vision.patch_size}-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """Maps uint8 [B, H, W, 3] to float32 [B, D], not normalised."""
        return in_fixed_batches(self._run_images, check_images(images_BHWC), batch_size(self._device), self.dim)

    def text_features(self, captions: Sequence[str]) -> Features:
        """Maps B captions to float32 [B, D], not normalised.

        Captions over the tower's limit are cut before their end token; a warning has their number.
        """
        features = np.zeros((len(captions), self.dim), dtype=np.float32)
        if not captions:
            return features
        lengths = [len(ids) for ids in self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]
        if cut := sum(length > self._max_tokens for length in lengths):
            warnings.warn(
                f"{cut:,} of {counted(len(captions), 'caption')} {verb(cut)} over the {self._max_tokens} tokens of "
                f"{self.name} and {verb(cut, 'was', 'were')} cut",
                stacklevel=2,
            )
        tokens = self._tokenizer(
            list(captions), truncation=True, max_length=self._max_tokens, padding="max_length", return_tensors="pt"
        )
        ids_BT, mask_BT = tokens["input_ids"], tokens["attention_mask"]
        for rows, count, length in length_batches(mask_BT.bool(), batch_size(self._device)):
            ids, mask = (x[rows, :length].to(self._device) for x in (ids_BT, mask_BT))
            with exact_float32(self._device):
                pooled = _pooled(self._model.get_text_features(input_ids=ids, attention_mask=mask))
            features[rows[:count].numpy()] = pooled[:count].cpu().numpy()
        return features

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Resizes (antialiased bicubic, no cropping), normalises like the folder's preprocessor, and embeds, differentiably."""
        pixels = F.interpolate((images_BCHW + 1) / 2, (self.side, self.side), mode="bicubic", antialias=True)
        mean, deviation = (
            torch.tensor(numbers, device=pixels.device).view(1, 3, 1, 1)
            for numbers in (self._processor.image_mean, self._processor.image_std)
        )
        pooled = self._model.vision_model(pixel_values=(pixels - mean) / deviation).pooler_output
        return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        return F.normalize(torch.from_numpy(self.text_features(captions)), dim=-1)

    def to(self, device: torch.device) -> Self:
        self._device = str(device)
        self._model.to(device)
        return self

    def _run_images(self, images_BHWC: ImageArray) -> Features:
        batch = self._processor(images=list(images_BHWC), return_tensors="pt", input_data_format="channels_last")
        with exact_float32(self._device):
            pixels = batch["pixel_values"].to(self._device)
            return _pooled(self._model.get_image_features(pixel_values=pixels)).cpu().numpy()


def _pooled(output: Any) -> Tensor:
    # transformers returns the projected features in an output object since 5.0, and as a tensor before.
    return getattr(output, "pooler_output", output)
