"""Writes captioned images as WebDataset shards: `t2i data pack ADDRESS --shards OUT --size 256`.

Layout: OUT/train-00000.tar with KEY.jpg, KEY.txt (one caption per line) and KEY.json (id, captions, size, labels) for each image,
train-00000.parquet beside it with the same facts, and OUT/pack.json with the settings and the data's fingerprints. The same data
gives the same bytes. Shards are written atomically, and the same command continues after an interruption.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from t2i import images, seeding
from t2i.data.encoded import EncodedImages
from t2i.data.tools.classes import LABEL, classes_or_none, entries_of
from t2i.data.verify import workers
from t2i.errors import InputError, os_errors
from t2i.files import new_file, refuse_used, write_text

FORMAT = 1
IMAGES = 1000  # per shard
QUALITY = 95  # JPEG quality
_AT_ONCE = 64


class PackResult(NamedTuple):
    """Counts of written images, and images that were left out."""

    shards: int
    images: int
    before: int  # images of shards that were written earlier
    broken: list[tuple[str, str]]  # id, reason


class _Format(NamedTuple):
    """Size and suffix of written images, as for `pack`."""

    size: int | None
    suffix: str


class _Source(NamedTuple):
    dataset: EncodedImages
    entries: Sequence[Mapping[str, Any]]  # labels and further entries of each row


class _Sample(NamedTuple):
    image: bytes
    suffix: str
    facts: dict[str, Any]


def pack(
    splits: Mapping[str, EncodedImages],
    out: Path,
    size: int | None = 256,
    suffix: Literal["jpg", "png"] = "jpg",
    per_shard: int = IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackResult:
    """Packs all splits, in a random order that is the same each time.

    Args:
        size: maximum length of the shorter side in pixels; larger images are resized, and files that few programs read (CMYK)
            are converted; None: copies files unchanged.
        suffix: format of images that are resized or converted.
        per_shard: images per shard.

    Raises:
        InputError: `out` holds other shards or cannot be written.
    """
    settings = {"format": FORMAT, "size": size, "suffix": suffix, "pictures": per_shard}
    settings |= {"data": {split: dataset.fingerprint() for split, dataset in splits.items()}}
    entries = {split: entries_of(dataset) for split, dataset in splits.items()}
    if any(map(any, entries.values())):
        settings["entries"] = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    _claim(out, settings)
    total, written, before, shards = sum(map(len, splits.values())), 0, 0, 0
    broken: list[tuple[str, str]] = []
    with os_errors(f"cannot write {out}", "free some space and start again"):
        for stem, split, rows in _shards(splits, out, per_shard):
            shards += 1
            if stem.with_suffix(".parquet").exists() and stem.with_suffix(".tar").exists():
                before += len(rows)
            else:
                source = _Source(splits[split], entries[split])
                broken += _write_shard(stem, source, rows, _Format(size, suffix))
                written += len(rows)
            on_progress(before + written, total)
    for leftover in out.glob(".*.tmp"):  # of a killed process
        leftover.unlink(missing_ok=True)
    return PackResult(shards, written - len(broken), before, broken)


def _shards(
    splits: Mapping[str, EncodedImages], out: Path, per_shard: int
) -> Iterator[tuple[Path, str, dict[int, int]]]:
    """Yields (path without suffix, split, row of each image by its number in the split) for each shard."""
    for split, dataset in splits.items():
        order = seeding.permutation(0, 0, len(dataset)).tolist()
        for number, start in enumerate(range(0, len(order), per_shard)):
            rows = dict(enumerate(order[start : start + per_shard], start))
            yield out / f"{split}-{number:05d}", split, rows


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Writes pack.json into a new folder, or checks that it has the same settings."""
    note = out / "pack.json"
    if note.exists():
        try:
            same = json.loads(note.read_text("utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            raise InputError(f"{out} holds shards of other data or settings; name a new folder, or remove it")
        return
    refuse_used(out)
    with os_errors(f"cannot write {out}", "name another folder"):
        out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(settings, indent=1) + "\n")


def _write_shard(stem: Path, source: _Source, rows: Mapping[int, int], form: _Format) -> list[tuple[str, str]]:
    """Writes a tar, then its table, which marks it as complete; returns the images that cannot be decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken: list[tuple[str, str]] = []
    facts: list[dict[str, Any]] = []
    with (
        new_file(stem.with_suffix(".tar"), durable=True) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, row, sample in _samples(source, rows, form):
            if isinstance(sample, str):
                broken.append((source.dataset.ids[row], sample))
                continue
            key = f"{number:09d}"
            captions = sample.facts["captions"]
            _add(tar, f"{key}.{sample.suffix}", sample.image)
            _add(tar, f"{key}.txt", "\n".join(captions).encode("utf-8", "replace"))
            _add(tar, f"{key}.json", json.dumps(sample.facts).encode())
            facts.append(
                {**sample.facts, "key": key, "caption": captions, LABEL: classes_or_none(sample.facts.get(LABEL))}
            )
    schema = [("key", pa.string()), ("caption", pa.list_(pa.string())), ("id", pa.string())]
    schema += [("width", pa.int32()), ("height", pa.int32())]
    schema += [(LABEL, pa.list_(pa.string()))] if any(row[LABEL] for row in facts) else []
    with new_file(stem.with_suffix(".parquet"), durable=True) as temporary:
        pq.write_table(pa.Table.from_pylist(facts, pa.schema(schema)), temporary)
    return broken


def _samples(source: _Source, rows: Mapping[int, int], form: _Format) -> Iterator[tuple[int, int, "_Sample | str"]]:
    """Yields (number of the image, row, sample or the reason why it is left out)."""
    pairs = list(rows.items())
    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            samples = pool.map(lambda pair: _sample(source, pair[1], form), part)
            yield from ((number, row, sample) for (number, row), sample in zip(part, samples, strict=True))


def _sample(source: _Source, row: int, form: _Format) -> "_Sample | str":
    """Returns an image with its facts, or the reason why it is left out."""
    (dataset, entries), (size, suffix) = source, form
    try:
        data = dataset.read(row)
        image = images.decode(data)
    except (images.BrokenImage, OSError) as error:
        return str(error)
    kind = (image.format or "").lower().replace("jpeg", "jpg")
    with Image.open(io.BytesIO(data)) as header:
        common = header.mode in ("RGB", "RGBA", "L", "LA", "P", "1")
    if size is not None and min(image.size) > size:
        scale = size / min(image.size)
        new = max(size, round(image.width * scale)), max(size, round(image.height * scale))
        image = image.resize(new, Image.Resampling.BICUBIC)
        kind = ""
    if kind not in ("jpg", "png", "webp", "gif", "bmp") or (size is not None and (kind != suffix or not common)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if suffix == "jpg" else "PNG", **({"quality": QUALITY} if suffix == "jpg" else {}))
        data, kind = buffer.getvalue(), suffix
    captions = [caption.encode("utf-8", "replace").decode() for caption in dataset.captions[row]]
    name = dataset.ids[row].encode("utf-8", "replace").decode()
    facts = {**entries[row], "id": name, "captions": captions, "width": image.width, "height": image.height}
    return _Sample(data, kind, facts)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and permissions are those of every member
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
