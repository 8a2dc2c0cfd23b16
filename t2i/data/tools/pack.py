"""Writes captioned images as WebDataset shards: `t2i data pack ADDRESS --shards OUT --size 256`.

Layout: OUT/train-00000.tar with KEY.jpg, KEY.txt (a caption a line) and KEY.json (id, captions, size) for each image, and
train-00000.parquet beside it with the same; OUT/pack.json says what was packed. The same data gives the same bytes. Each shard
appears whole or not at all, and the same command again continues where it was stopped.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from t2i import images, seeding
from t2i.data.encoded import EncodedImages
from t2i.data.verify import workers
from t2i.errors import InputError
from t2i.files import new_file, write_text

FORMAT = 1
IMAGES = 1000  # a shard
QUALITY = 95  # of JPEG
_AT_ONCE = 64


class PackResult(NamedTuple):
    """Counts of images that a packing wrote and left out."""

    shards: int
    images: int
    before: int  # images of shards that were there already
    broken: list[tuple[str, str]]  # id, reason


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
    """Packs all splits; images come in a random order of a fixed seed.

    Args:
        size: pixels of the shorter side, to which larger images are brought, and files that few programs read (CMYK) are
            converted; None: the files as they are.
        suffix: how images that are brought to size are written.
        per_shard: images of a shard.

    Raises:
        InputError: `out` holds other shards or cannot be written.
    """
    settings = {"format": FORMAT, "size": size, "suffix": suffix, "pictures": per_shard}
    settings |= {"data": {split: dataset.fingerprint() for split, dataset in splits.items()}}
    _claim(out, settings)
    done, total = 0, sum(map(len, splits.values()))
    made = before = shards = 0
    broken: list[tuple[str, str]] = []
    for split, dataset in splits.items():
        order = seeding.permutation(0, 0, len(dataset)).tolist()
        for number, start in enumerate(range(0, len(order), per_shard)):
            rows = {start + k: row for k, row in enumerate(order[start : start + per_shard])}
            stem = out / f"{split}-{number:05d}"
            shards += 1
            if stem.with_suffix(".parquet").exists() and stem.with_suffix(".tar").exists():
                before += len(rows)
            else:
                try:
                    broken += _write_shard(stem, dataset, rows, size, suffix)
                except OSError as error:
                    why = error.strerror or error
                    raise InputError(f"cannot write {out}: {why}; free some space and start again") from error
                made += len(rows)
            done += len(rows)
            on_progress(done, total)
    for leftover in out.glob(".*.tmp"):  # of a killed process
        leftover.unlink(missing_ok=True)
    return PackResult(shards, made - len(broken), before, broken)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    note = out / "pack.json"
    if note.exists():
        try:
            same = json.loads(note.read_text("utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            raise InputError(f"{out} holds shards of other data or settings; name a new folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; name another folder") from error
    write_text(note, json.dumps(settings, indent=1) + "\n")


def _write_shard(
    stem: Path, dataset: EncodedImages, rows: Mapping[int, int], size: int | None, suffix: str
) -> list[tuple[str, str]]:
    """Writes a tar, then the table that says it is whole; returns the images that cannot be decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken: list[tuple[str, str]] = []
    facts: list[dict[str, Any]] = []
    with (
        new_file(stem.with_suffix(".tar"), durable=True) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, row, sample in _samples(dataset, rows, size, suffix):
            if isinstance(sample, str):
                broken.append((dataset.ids[row], sample))
                continue
            key = f"{number:09d}"
            captions = sample.facts["captions"]
            _add(tar, f"{key}.{sample.suffix}", sample.image)
            _add(tar, f"{key}.txt", "\n".join(captions).encode("utf-8", "replace"))
            _add(tar, f"{key}.json", json.dumps(sample.facts).encode())
            facts.append({"key": key, "caption": captions, **sample.facts})
    schema = [("key", pa.string()), ("caption", pa.list_(pa.string())), ("id", pa.string())]
    schema += [("width", pa.int32()), ("height", pa.int32())]
    with new_file(stem.with_suffix(".parquet"), durable=True) as temporary:
        pq.write_table(pa.Table.from_pylist(facts, pa.schema(schema)), temporary)
    return broken


def _samples(
    dataset: EncodedImages, rows: Mapping[int, int], size: int | None, suffix: str
) -> Iterator[tuple[int, int, "_Sample | str"]]:
    pairs = list(rows.items())
    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            made = pool.map(lambda pair: _sample(dataset, pair[1], size, suffix), part)
            yield from ((number, row, sample) for (number, row), sample in zip(part, made, strict=True))


def _sample(dataset: EncodedImages, row: int, size: int | None, suffix: str) -> "_Sample | str":
    """Returns an image with its facts, or why it is left out."""
    try:
        source = dataset.source(row)
        data = source if isinstance(source, bytes) else images.read_limited(source)
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
    facts = {"id": name, "captions": captions, "width": image.width, "height": image.height}
    return _Sample(data, kind, facts)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and rights are the same for all
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
