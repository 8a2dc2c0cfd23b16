"""Measures the speed of reading captioned JPEGs beside webdataset and torchvision's ImageFolder, as a markdown table.

    pip install t2i[bench]
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/loader_speed.py

There are two sets of JPEGs with the statistics of photographs, quality 90: 256 px, which need no scaling, and 1024 x 768,
scaled to 256 px and cropped at the centre. All yield shuffled batches of 64 uint8 images; t2i in its exactly resumable order.
Images are read for the first time (t2i keeps decoded ones, the others do not), and files are in the page cache. Each round
runs all cases in one process, so that slow minutes of the machine affect every side; wall and CPU time are medians of the
rounds, and CPU time includes workers. "JPEG" is the time in which Pillow alone decodes the same bytes fully, as a share of
the CPU time.
"""

import argparse
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision.datasets import ImageFolder

from t2i.data import View, open_dataset
from t2i.data.loader import Loader

SIZE, BATCH = 256, 64
SETS = {"256 px": (256, 256), "1024 x 768": (1024, 768)}


class Case(NamedTuple):
    """One case to time: a new iterator of batches for each round."""

    images: str
    who: str
    workers: int
    open: Callable[[], Iterator[Any]]


def photograph(key: int, width: int, height: int) -> bytes:
    """Returns a JPEG with the spectrum of photographs (1/f), so that it compresses and decodes like one."""
    rng = np.random.default_rng(key)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(fx, fy), 1 / width)
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * fall, (height, width)) for _ in range(3)
    ]
    grey = planes[0][..., None] + 0.3 * np.stack(planes, axis=-1)
    pixels = 128 + 50 * (grey - grey.mean()) / grey.std()
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def write(root: Path, width: int, height: int, count: int) -> list[bytes]:
    """Writes the images as a folder of one class with .txt files, and as shards of 250."""
    (root / "folder" / "train").mkdir(parents=True)
    (root / "shards" / "train").mkdir(parents=True)
    shown = [photograph(key, width, height) for key in range(min(count, 50))]  # made once, each used several times
    for key in range(count):
        data = shown[key % len(shown)]
        (root / "folder" / "train" / f"{key:06d}.jpg").write_bytes(data)
        (root / "folder" / "train" / f"{key:06d}.txt").write_text(f"picture {key}")
        with tarfile.open(root / "shards" / "train" / f"{key // 250:05d}.tar", "a") as tar:
            for kind, content in (("jpg", data), ("txt", f"picture {key}".encode())):
                member = tarfile.TarInfo(f"{key:06d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return shown


def to_square(picture: Image.Image) -> torch.Tensor:
    """Does for the other packages what ours does: a centre crop and bicubic scaling with antialiasing, uint8 HWC."""
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(picture))


def pair(sample: tuple[Image.Image, str]) -> tuple[torch.Tensor, str]:
    return to_square(sample[0]), sample[1]


def cases(name: str, root: Path, workers: int) -> Iterator[Case]:
    count = min(workers, len(list((root / "shards" / "train").iterdir())))

    def ours(kind: str) -> Iterator[Any]:
        return Loader(open_dataset(f"{kind}:{root / kind}", "train", View(SIZE)), BATCH, seed=0, num_workers=workers)

    def image_folder() -> Iterator[Any]:
        data = ImageFolder(str(root / "folder"), transform=to_square)
        return iter(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True))

    def tar_stream() -> Iterator[Any]:
        urls = sorted(str(path) for path in (root / "shards" / "train").iterdir())
        data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("pil").to_tuple("jpg", "txt")
        return iter(webdataset.WebLoader(data.map(pair).batched(BATCH), batch_size=None, num_workers=count))

    yield Case(name, "t2i, folder", workers, lambda: ours("folder"))
    yield Case(name, "t2i, shards", workers, lambda: ours("shards"))
    yield Case(name, "torchvision ImageFolder", workers, image_folder)
    yield Case(name, "webdataset", workers, tar_stream)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(case: Case, batches: int) -> tuple[float, float]:
    """Returns (wall seconds, CPU seconds) per image; CPU includes the first batch and the workers, neither includes opening."""
    iterator = case.open()
    before = cpu_seconds()
    next(iterator)
    started = time.perf_counter()
    for _ in range(batches - 1):
        next(iterator)
    wall = (time.perf_counter() - started) / (BATCH * (batches - 1))
    del iterator  # ends the workers, which are counted then
    return wall, (cpu_seconds() - before) / (BATCH * batches)


def decoding_alone(shown: list[bytes]) -> float:
    """Returns the CPU seconds in which Pillow decodes one of these images fully."""
    before = time.process_time()
    for data in shown:
        Image.open(io.BytesIO(data)).load()
    return (time.process_time() - before) / len(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="images of each set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["T2I_CACHE"] = f"{folder}/cache"
        every: list[Case] = []
        alone: dict[str, list[float]] = {}
        shown: dict[str, list[bytes]] = {}
        for name in options.sets:
            shown[name] = write(Path(folder) / name, *SETS[name], options.images)
            every += [case for workers in (0, 1, 2) for case in cases(name, Path(folder) / name, workers)]
        found: dict[Case, list[tuple[float, float]]] = {case: [] for case in every}
        for case in every:
            measure(case, 2)  # fills the page cache and t2i's indices
        for _ in range(options.rounds):
            for name in options.sets:
                alone.setdefault(name, []).append(decoding_alone(shown[name]))
            for case in every:
                # ImageFolder drops a last part of a batch, webdataset ends an epoch a worker early
                found[case].append(measure(case, options.images // BATCH - 3))
        print("| images | reader | workers | images/s | CPU ms per image | JPEG |")
        print("|---|---|---|---|---|---|")
        for case, rows in found.items():
            wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            share = statistics.median(alone[case.images]) / cpu
            print(f"| {case.images} | {case.who} | {case.workers} | {1 / wall:,.0f} | {1000 * cpu:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
