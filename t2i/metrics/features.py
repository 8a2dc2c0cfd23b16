"""Extractors given by a path: the FID Inception's weights, or a CLIP folder as transformers writes it.

Features depend a little on the batch a picture is in, so networks see batches of one fixed size, the last one filled
up: the same picture has the same features, bit for bit, however it was handed over.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics import Features, Resize
from t2i.metrics.inception import DIM, IMAGE_SIZE, load_inception
from t2i.metrics.protocol import FID_INCEPTION_DIGEST


def batch_size(device: str) -> int:
    """Pictures a network sees at once: enough to fill the device, and always as many."""
    return 8 if torch.device(device).type == "cpu" else 64


def open_inception(path: str, resize: Resize = "clean", device: str = "cpu") -> "InceptionExtractor":
    """For `EXTRACTORS`: `inception:weights.pth`."""
    return InceptionExtractor(Path(path), resize, device)


def open_clip(path: str, resize: Resize = "clean", device: str = "cpu") -> "CLIPExtractor":
    """For `EXTRACTORS`: `clip:folder`. The folder names its own preprocessing, so no other resize is taken."""
    if resize != "clean":
        raise InputError(f"resize {resize!r} is for the Inception; a CLIP folder has its own preprocessor_config.json")
    return CLIPExtractor(Path(path), device)


class InceptionExtractor:
    """2048 features of the FID Inception's last pooling."""

    dim = DIM

    def __init__(self, path: Path, resize: Resize = "clean", device: str = "cpu") -> None:
        if resize not in ("clean", "legacy", "torch"):
            raise InputError(f"resize {resize!r} is unknown: give clean, legacy or torch")
        self.resize: str = resize
        self._how: Resize = resize
        self._device = device
        self._network, self._digest = load_inception(path, device)
        self.name = "inception" if self._digest == FID_INCEPTION_DIGEST else f"inception-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """uint8 [B, H, W, 3] of any size -> float32 [B, 2048]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), batch_size(self._device), self.dim)

    def _run(self, images_BHWC: ImageArray) -> Features:
        pixels_BCHW = resize_images(images_BHWC, IMAGE_SIZE, self._how)
        pixels_BCHW = pixels_BCHW.to(self._device, memory_format=torch.channels_last)
        # The TensorFlow graph subtracts 128; pytorch-fid, whose protocol `torch` is, maps [0, 255] to [-1, 1].
        centred = pixels_BCHW / 127.5 - 1 if self._how == "torch" else (pixels_BCHW - 128) / 128
        with exact_float32(self._device):
            return self._network(centred).cpu().numpy()


class CLIPExtractor:
    """Both towers of a CLIP folder: config.json, *.safetensors, preprocessor_config.json, tokenizer."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Raises InputError: no such folder, another kind of model, or weights that do not fill the model."""
        self._device = device
        self.model, self.image_processor, self._tokenizer = _load_clip(path)
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


def _load_clip(path: Path) -> tuple[Any, Any, Any]:
    if not (path / "config.json").is_file():
        raise InputError(f"CLIP folder {path} has no config.json; name one that save_pretrained of transformers wrote")
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip":
            raise InputError(f"{path} holds a model of type {kind!r}, not 'clip'; name a CLIP folder")
        with _quiet_transformers():
            from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

            loaded: Any = CLIPModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except InputError:
        raise
    # Missing and damaged files raise OSError, ValueError, SafetensorError, ... according to which.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise InputError(f"CLIP folder {path} cannot be loaded ({reason}); download it again") from error
    if absent := sorted(report["missing_keys"]):  # transformers fills them with random numbers
        what = f"{absent[0]} and {len(absent) - 1} other tensors" if len(absent) > 1 else absent[0]
        raise InputError(f"CLIP folder {path} lacks the weights of {what}; download it again")
    return model, processor, tokenizer


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no table of missing weights, which becomes one error line."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def digest_folder(path: Path) -> str:
    """sha256 over the names and contents of a model folder's weights, configs and tokenizer files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".json", ".txt", ".model"):
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def check_images(images_BHWC: ImageArray) -> ImageArray:
    """Raises ValueError unless uint8 [B, H, W, 3]: float pictures are quantised by their maker, once."""
    if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        raise ValueError(f"pictures must be uint8 [B, H, W, 3], got {images_BHWC.dtype} {list(images_BHWC.shape)}")
    return images_BHWC


def in_fixed_batches(run: Callable[[Any], Features], rows: np.ndarray, size: int, dim: int) -> Features:
    """Runs [size, ...] rows at a time, the last batch filled with its last row; returns [len(rows), dim]."""
    out = np.zeros((len(rows), dim), dtype=np.float32)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filler = np.repeat(batch[-1:], size - len(batch), axis=0)
        out[start : start + size] = run(np.concatenate([batch, filler]))[: len(batch)]
    return out


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """No gradient, no autocast, no TF32: 10 bits of mantissa are not enough to score with. Settings are put back."""
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    backends: list[Any] = [torch.backends.cuda.matmul, convolution]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def resize_images(images_BHWC: ImageArray, size: int, how: Resize) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, size, size] in [0, 255], not quantised again."""
    if how == "clean":
        return torch.from_numpy(np.stack([_clean(image, size) for image in images_BHWC]))
    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(images_BHWC)).permute(0, 3, 1, 2).float()
    if how == "torch":
        return F.interpolate(pixels_BCHW, size=(size, size), mode="bilinear", align_corners=False)
    return _legacy(_legacy(pixels_BCHW, size, 3), size, 2)


def _clean(image_HWC: ImageArray, size: int) -> np.ndarray:
    # Each channel in Pillow's float mode: bicubic overshoots, and 8-bit mode would round what it clips.
    channels = [Image.fromarray(image_HWC[:, :, c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]).clip(0, 255)


def _legacy(x: Tensor, size: int, axis: int) -> Tensor:
    """TensorFlow 1's bilinear filter along one axis: pixel i samples at i * scale, not at pixel centres, in float32."""
    length = x.shape[axis]
    position = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size, dtype=torch.float32)
    low = position.long()
    fraction = (position - low).view([-1 if a == axis else 1 for a in range(x.ndim)])
    left, right = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(length - 1))
    return left + (right - left) * fraction
