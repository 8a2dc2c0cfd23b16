"""Plants leaks, and counts how many are found and how many other images are reported.

    python benchmarks/leaks.py [FOLDER OF PHOTOGRAPHS]

A model "was trained on" 1,000 images. Of the held-out ones, 100 are copies: of a caption (other case, spaces, ends), of a
file, re-encoded (PNG to BMP and to lossless WebP, JPEG at 90, 75 and 50), or resized. Another 1,000 held-out images are no
copies. Images are textures with the spectrum of photographs, rendered shapes (whose scenes are alike: few objects, eight
colours), and those of a folder if one is named.

At 64 px, 100 of each kind:

| copy | textures | rendered shapes |
|---|---|---|
| caption in other case, with other spaces, quotes or ends | 100 refused | |
| the same file, BMP, lossless WebP | 300 of 300 refused | 300 of 300 refused |
| JPEG 90, 75, 50 | 300 of 300 reported | 300 of 300 reported |
| JPEG 75 of twice the size; PNG of 3/4 of it | 200 of 200 reported | 200 of 200 reported |
| JPEG 75 of half the size | 100 reported | 94 reported |
| 1,000 others | 0 refused, 0 reported | 0 refused, 297 reported |

Recording an image takes 0.3-0.5 ms in addition to decoding it, on one busy core. Tiles of 64 px cut from 13 photographs: 98
of 100 JPEG 75 are found, the others are flat sky; 3 of 100 flat tiles equal another tile and are therefore refused.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from t2i.data import View, open_dataset
from t2i.data.phash import Signatures, near_duplicates, signatures
from t2i.data.record import caption_hashes, pixel_hashes
from t2i.images import ImageArray, decode, fit

SIDE, TRAINED, PLANTED, OTHERS = 64, 1000, 100, 1000


def textures(count: int, seed: int) -> ImageArray:
    """Returns noise with amplitudes of 1 / frequency, correlated colours, and various means and contrasts."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, SIDE, SIDE))) / frequency).real
    mixed = np.einsum("ij,njhw->nihw", np.array([[1, 0.3, 0.2], [1, 0.1, -0.1], [1, -0.2, -0.3]]), noise)
    contrast, mean = rng.uniform(20, 60, (count, 1, 1, 1)), rng.uniform(60, 190, (count, 3, 1, 1))
    levels = mean + contrast * mixed / mixed.std(axis=(1, 2, 3), keepdims=True)
    return levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def shapes(split: str, count: int) -> ImageArray:
    return open_dataset("shapes-3", split, View(SIDE, limit=count)).images(range(count))


def folder(path: str) -> ImageArray:
    """Returns all images of a folder, cropped to squares."""
    files = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return np.stack([fit(decode(file), SIDE) for file in files])


def through(kind: str, side: int | None = None, **options: int | bool) -> Callable[[ImageArray], ImageArray]:
    """Returns an image as it is read from a file, at the size of the training."""

    def change(image_HWC: ImageArray) -> ImageArray:
        picture = Image.fromarray(image_HWC)
        if side is not None:
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, kind, **options)
        return fit(decode(out.getvalue()), len(image_HWC))

    return change


CHANGES: dict[str, Callable[[ImageArray], ImageArray]] = {
    "the same file": through("PNG"),
    "BMP": through("BMP"),
    "WEBP lossless": through("WEBP", lossless=True),
    "JPEG 90": through("JPEG", quality=90),
    "JPEG 75": through("JPEG", quality=75),
    "JPEG 50": through("JPEG", quality=50),
    "twice the size, JPEG 75": through("JPEG", 2 * SIDE, quality=75),
    "3/4 of the size, PNG": through("PNG", SIDE * 3 // 4),
    "half the size, JPEG 75": through("JPEG", SIDE // 2, quality=75),
}


def captions() -> None:
    """Checks that captions in other words differ, and that captions with another case, spaces and ends are equal."""
    known = [options[0] for options in open_dataset("shapes-3", "train", View(SIDE, limit=TRAINED)).captions]
    others = [options[0] for options in open_dataset("shapes-3", "val", View(SIDE, limit=OTHERS)).captions]
    ways: list[Callable[[str], str]] = [
        str.upper,
        str.title,
        lambda x: f"  {x.replace(' ', '   ')}\t",
        lambda x: f"“{x}.”",
        lambda x: x.replace(" ", "\u00a0") + " !",
    ]
    planted = [ways[k % len(ways)](known[k]) for k in range(PLANTED)]
    hashes = caption_hashes(known)
    found, false = (int(np.isin(caption_hashes(some), hashes).sum()) for some in (planted, others))
    print(f"captions: {found} of {PLANTED} refused; of {OTHERS} others {false}")


def pictures(name: str, trained: ImageArray, others: ImageArray) -> None:
    started = time.perf_counter()
    known: Signatures = signatures(trained)
    exact = pixel_hashes(trained)
    spent = (time.perf_counter() - started) / len(trained) * 1e3
    print(f"{name}: {len(trained):,} trained on, {spent:.2f} ms each to note")
    for what, change in CHANGES.items():
        copies = np.stack([change(image) for image in trained[:PLANTED]])
        same = np.isin(pixel_hashes(copies), exact)
        alike = np.zeros(len(copies), bool)
        alike[near_duplicates(signatures(copies), known)[:, 0]] = True
        print(
            f"  {what:24} {same.sum():4} refused  {(alike & ~same).sum():4} reported  {(~same & ~alike).sum():4} missed"
        )
    false = len(near_duplicates(signatures(others), known))
    print(f"  of {len(others):,} others {np.isin(pixel_hashes(others), exact).sum()} refused, {false} reported")


def main() -> None:
    captions()
    pictures("textures", textures(TRAINED, 1), textures(OTHERS, 2))
    pictures("drawn shapes", shapes("train", TRAINED), shapes("val", OTHERS))
    for path in sys.argv[1:]:
        every = folder(path)
        pictures(path, every[: len(every) // 2], every[len(every) // 2 :])


if __name__ == "__main__":
    main()
