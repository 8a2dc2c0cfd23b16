"""Converts between image files, arrays and tensors.

An image is uint8 RGB, HWC (numpy), or NHWC for a batch; models take float32 in [-1, 1], BCHW. Quantisation to uint8 rounds
half up and happens once, at the model's output.
"""

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from t2i.errors import InputError, os_errors
from t2i.files import open_regular
from t2i.fonts import Pen

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 210_000_000  # phone cameras take images of 200 million
MAX_SIDE = 16_384
MAX_BYTES = 64 * 1024 * 1024
TRANSFORM = 2  # version of the decoder: incremented when a file decodes to other pixels, which invalidates caches
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp")
# image formats that are not supported, but mentioned in messages
OTHER_SUFFIXES = (
    ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".svg", ".eps", ".jp2", ".j2k", ".jpf", ".jpe", ".mpo",
    ".apng", ".psd", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".pcx", ".dib", ".dds", ".exr", ".hdr", ".qoi",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
Fit = Literal["center", "random", "squash", "pad"]

ImageArray = NDArray[np.uint8]

_LARGE_PIXELS = 25_000_000
_LARGE = Semaphore(2)  # limits the number of large images decoded at a time, as each takes up to a gigabyte

# EXIF orientation -> operation that turns the stored pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Set once, as `catch_warnings` around each decode would race between threads. MAX_PIXELS, which is checked before an image is
# decoded, replaces Pillow's limit; Pillow's other warnings are about damaged metadata, which does not affect pixels.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Otherwise intact images with text or colour profiles over Pillow's limit of a megabyte would count as broken.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_BYTES


class BrokenImage(ValueError):
    """An image that cannot be decoded; the message gives the reason, and the caller adds the name of the file."""


class LostConnection(BrokenImage):
    """An image whose storage cannot be reached: nothing is known of the image itself."""


def decode(source: Path | bytes, size: int | None = None) -> Image.Image:
    """Decodes one image to RGB with its EXIF orientation, transparency on white, and the first frame of an animation.

    The result's `format` is that of the file: PNG, JPEG, ...

    Args:
        size: the size that `fit` will scale to. A JPEG of at least 4 times this size may then be decoded at 1/2, 1/4 or 1/8
            of its size, but at least twice `size`, which together with the scaling takes about half the time.

    Raises:
        BrokenImage: the file is unreadable, truncated, not an image, or exceeds the limits of this module.
    """
    try:
        image = _open(source if isinstance(source, bytes) else read_limited(source))
        if size is not None:
            image.draft(None, (2 * size, 2 * size))  # has an effect on JPEG only
        with _LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext():
            image.load()
            upright = _to_rgb(image)
            turn = _UPRIGHT.get(_orientation(image))
            if turn is not None:
                upright = upright.transpose(turn)
        upright.format = image.format
        return upright
    except BrokenImage:
        raise
    # for damaged files, Pillow raises OSError, SyntaxError, ValueError, struct.error, DecompressionBombError, ...
    except Exception as error:
        raise BrokenImage(f"{type(error).__name__}: {str(error) or 'cannot be decoded'}"[:200]) from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BrokenImage("the file is empty")
    if len(data) > MAX_BYTES:
        raise BrokenImage(f"more than the limit of {MAX_BYTES:,} bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "GIF", "BMP"])
    except UnidentifiedImageError as error:
        raise BrokenImage(f"not a PNG, JPEG, WEBP, GIF or BMP image: it begins with {data[:12]!r}") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BrokenImage(f"{width}x{height} pixels, over the limit of {MAX_PIXELS:,} pixels or {MAX_SIDE} per side")
    return image


# the sum of the luminance table of quality 50 (ISO/IEC 10918-1, K.1), which IJG's quality scales
_TABLE_50 = 3688
_CHROMA = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


class JpegSettings(NamedTuple):
    """How a JPEG file was compressed.

    Attributes:
        quality: on the scale of IJG, 1 to 100; tables end at 255, so qualities below 20 read a little higher.
        chroma: subsampling of the colours, as `4:2:0`; "": another one, or an image without colours.
    """

    quality: int
    chroma: str


def jpeg_settings(source: Path | bytes) -> JpegSettings | None:
    """Returns the settings of a JPEG file, from its quantisation table and its header; None: it is not one."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=["JPEG"]) as image:
            table = list(getattr(image, "quantization", {})[0])
            chroma = _CHROMA.get(JpegImagePlugin.get_sampling(image), "")  # pyright: ignore[reportArgumentType]
    except (OSError, SyntaxError, ValueError, KeyError):
        return None
    scale = 100 * sum(table) / _TABLE_50
    return JpegSettings(max(1, min(100, round((200 - scale) / 2 if scale <= 100 else 5000 / scale))), chroma)


def is_lossless_webp(source: Path | bytes) -> bool:
    """Returns True for a WebP file whose first image is compressed without loss."""
    with nullcontext(io.BytesIO(source)) if isinstance(source, bytes) else open_regular(source) as file:
        file.seek(12)  # RIFF, size, WEBP
        while len(head := file.read(8)) == 8:
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            if kind in (b"VP8 ", b"VP8L"):
                return kind == b"VP8L"
            # the chunks of an image are inside the frame of an animation
            file.seek(16 if kind == b"ANMF" else size + size % 2, os.SEEK_CUR)
    return False


def read_limited(path: Path) -> bytes:
    """Returns the bytes of a file, at most one more than `decode` accepts.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # `read` first allocates as much as it is asked for
        return file.read(min(size, MAX_BYTES) + 1)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block can raise any error, but the pixels are intact
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((levels >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def fit(image: Image.Image, size: int, how: Fit = "center", offset: tuple[float, float] = (0.5, 0.5)) -> ImageArray:
    """Scales an image to [size, size, 3] with Pillow's antialiased bicubic filter.

    Args:
        image: RGB, any size.
        size: pixels per side.
        how: `center`/`random`: crops the largest square at `offset`, then scales it; `squash`: scales both sides;
            `pad`: scales the longest side to `size` and fills the rest with white.
        offset: position of the crop, (x, y) in [0, 1]; 0.5 is the centre. For `random`, the caller draws it.
    """
    width, height = image.size
    if width == height == size:
        return np.asarray(image)
    if how == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    if how == "pad":
        scale = size / max(width, height)
        new = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image.resize(new, Image.Resampling.BICUBIC), ((size - new[0]) // 2, (size - new[1]) // 2))
        return np.asarray(canvas)
    # only the cropped square is scaled, since scaling a whole 1 x 16384 strip would need gigabytes
    side = min(width, height)
    left, top = round((width - side) * offset[0]), round((height - side) * offset[1])
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_model(images_BHWC: ImageArray) -> "torch.Tensor":
    """Converts uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], channels_last in memory."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images_BHWC)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images_BCHW: "torch.Tensor") -> ImageArray:
    """Converts float [B, 3, H, W] in [-1, 1] (clipped) to uint8 [B, H, W, 3], rounding half up."""
    import torch

    levels = images_BCHW.detach().float().clamp(-1, 1).add(1).mul(127.5).add(0.5).floor().clamp(0, 255)
    return levels.permute(0, 2, 3, 1).to(device="cpu", dtype=torch.uint8).contiguous().numpy()


def save_png(image_HWC: ImageArray, path: Path, text: dict[str, str] | None = None) -> None:
    """Writes an image as PNG, with `text` (prompt, seed, ...) in its metadata."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    with os_errors(f"cannot write {path}", "free some space or name another folder"):
        Image.fromarray(image_HWC).save(path, pnginfo=info)


def grid(
    images: Sequence[ImageArray],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int | None = None,
) -> Image.Image:
    """Returns a sheet of images in rows, each enlarged to `cell` pixels (nearest neighbour) with its label wrapped below.

    Args:
        images: uint8 HWC, all of the same size.
        labels: one per image; None: no text.
        columns: images per row; None: as many as make the sheet about square.
        cell: pixels per side of each image in the sheet; None: at least 128.
    """
    if not images:
        raise InputError("a grid needs at least one image, got none")
    columns = columns or max(1, round(len(images) ** 0.5 + 0.49))
    size = images[0].shape[0]
    side = cell or size * max(1, -(-128 // size))
    pen = Pen(11)
    wrapped = [pen.wrapped(label, side) for label in labels or []]
    text_height = 14 * max((len(lines) for lines in wrapped), default=0) + (6 if labels else 0)
    rows = -(-len(images) // columns)
    gap = 6
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text_height + gap) + gap), "#f4f4f4")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = gap + (i % columns) * (side + gap), gap + (i // columns) * (side + text_height + gap)
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for k, line in enumerate(wrapped[i] if labels else []):
            pen.write(draw, (x, y + side + 2 + 14 * k), line, "#222222")
    return sheet
